"""Pictures of every kind become upright RGB of known colours, or are refused by name."""

import io
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops

import utils.image
from utils.image import ImageError, read_image, read_size

CORNERS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 0]]], np.uint8)  # red green / blue yellow


def make_quadrants(width=40, height=24):
    return Image.fromarray(CORNERS).resize((width, height), Image.Resampling.NEAREST)


def corners_of(picture):
    """Colours (2, 2, 3) near the four corners."""
    pixels = np.asarray(picture.image).astype(int)
    h, w = pixels.shape[:2]
    return pixels[np.ix_([h // 8, h - 1 - h // 8], [w // 8, w - 1 - w // 8])]


def save(tmp_path, image, name, **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.bmp", "a.tif", "a.gif"])
def test_formats(tmp_path, name):
    path = save(tmp_path, make_quadrants(), name, **({"quality": 95} if name[2:] in ("jpg", "webp") else {}))
    for source in (path, str(path), io.BytesIO(path.read_bytes())):
        picture = read_image(source)
        assert picture.image.mode == "RGB" and picture.size == (24, 40)
        assert np.abs(corners_of(picture) - CORNERS).max() < 30


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_gives_the_picture_a_viewer_shows(tmp_path, orientation, suffix):
    undo = {2: 0, 3: 1 + 2, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # PIL's transposition that the camera's turn amounts to
    upright = make_quadrants()
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path, stored, f"turned.{suffix}", exif=exif, **({"quality": 95} if suffix == "jpg" else {}))
    picture = read_image(path)
    assert picture.size == read_size(path) == (24, 40) and picture.image.size == (40, 24)
    assert np.abs(corners_of(picture) - CORNERS).max() < 30
    with Image.open(path) as opened:
        again = read_image(opened)
        assert again.size == (24, 40) and ImageChops.difference(again.image, picture.image).getbbox() is None


@pytest.mark.parametrize("suffix", ["jpg", "tif", "png"])
def test_a_pil_image_turned_by_hand_is_not_turned_again(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path, make_quadrants().transpose(Image.Transpose.ROTATE_90), f"a.{suffix}", exif=exif)
    opened = Image.open(path)
    opened.load()
    by_hand = opened if suffix == "tif" else opened.transpose(Image.Transpose.ROTATE_270)  # Pillow turns a TIFF itself
    for image in (by_hand, by_hand.convert("L"), by_hand.resize((40, 24))):
        picture = read_image(image)
        assert picture.size == (24, 40) and picture.image.size == (40, 24)


def test_transparency_lies_on_white():
    image = make_quadrants().convert("RGBA")
    image.putalpha(Image.fromarray(np.tile(np.repeat(np.uint8([0, 255]), 20), (24, 1))))
    assert corners_of(read_image(image)).tolist() == [[[255] * 3, [0, 255, 0]], [[255] * 3, [255, 255, 0]]]
    grey = Image.merge("LA", (Image.new("L", (16, 16), 0), Image.new("L", (16, 16), 51)))
    assert np.unique(np.asarray(read_image(grey).image)).tolist() == [204]


def test_palette_with_a_transparent_colour(tmp_path):
    image = make_quadrants().quantize(4)
    red = image.getpixel((0, 0))
    path = save(tmp_path, image, "palette.png", transparency=red)
    assert corners_of(read_image(path))[0].tolist() == [[255, 255, 255], [0, 255, 0]]


@pytest.mark.parametrize("mode", ["LA", "La", "PA", "P", "RGBA", "RGBa", "RGBX"])
def test_modes_with_and_without_transparency_whose_parts_are_all_opaque(mode):
    image = Image.fromarray(np.kron([[0, 255], [255, 0]], np.ones((16, 16))).astype(np.uint8))
    image = image.convert("LA").convert(mode) if mode == "La" else image.convert("RGBA").convert(mode)
    found = corners_of(read_image(image))
    assert image.mode == mode and np.array_equal(found, np.repeat([[[0], [255]], [[255], [0]]], 3, axis=2))


@pytest.mark.parametrize("kind", ["<u2", ">u2"])
def test_sixteen_bits_in_either_order_of_bytes(tmp_path, kind):
    values = np.full((16, 16), 128 * 257).astype(kind)
    image = Image.frombytes("I;16" if kind == "<u2" else "I;16B", (16, 16), values.tobytes())
    for source in (image, values, save(tmp_path, image, "deep.tif")):
        assert np.unique(np.asarray(read_image(source).image)).tolist() == [128]


def test_a_tiff_of_floats(tmp_path):
    path = save(tmp_path, Image.fromarray(np.full((16, 16), 0.2, np.float32)), "deep.tif")
    assert np.unique(np.asarray(read_image(path).image)).tolist() == [51]
    path = save(tmp_path, Image.fromarray(np.full((16, 16), 200, np.float32)), "deep.tif")
    with pytest.raises(ImageError, match=r"deep.tif: floating values must lie in \[0, 1\]"):
        read_image(path)


def test_sixteen_bit_colour_png(tmp_path):
    """Written by hand: Pillow reads such files, but writes none."""

    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    pixels = np.broadcast_to(np.array([10, 128, 250]) * 257, (16, 12, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = (12).to_bytes(4, "big") + (16).to_bytes(4, "big") + bytes([16, 2, 0, 0, 0])
    path = tmp_path / "deep.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    picture = read_image(path)
    assert picture.size == (16, 12) and np.array_equal(np.asarray(picture.image)[3, 3], [10, 128, 250])


@pytest.mark.parametrize("mode", ["1", "L", "I;16", "I", "F", "LAB", "HSV", "YCbCr", "CMYK"])
def test_modes(mode):
    scale = {"I;16": 257, "I": 257, "F": 1 / 255}.get(mode, 1)
    values = np.kron([[0, 255], [255, 0]], np.ones((16, 16)))
    if scale == 1:
        image = Image.fromarray(values.astype(np.uint8)).convert("RGB")
        image = image.convert("L").convert(mode) if mode in ("1", "L") else _convert(image, mode)
    else:
        kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        image = Image.fromarray((values * scale).astype(kind))
    assert image.mode == mode
    found = corners_of(read_image(image))
    assert np.abs(found - np.array([[0, 255], [255, 0]])[..., None]).max() <= 3


def _convert(image, mode):
    if mode != "LAB":
        return image.convert(mode)
    from PIL import ImageCms

    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    return ImageCms.profileToProfile(image, *profiles, outputMode="LAB")


def test_sixteen_bit_png_from_disk(tmp_path):
    path = save(tmp_path, Image.fromarray(np.full((16, 16), 128 * 257, np.uint16)), "deep.png")
    assert np.unique(np.asarray(read_image(path).image)).tolist() == [128]


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_the_first_frame_of_an_animation(tmp_path, suffix):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    path = save(tmp_path, frames[0], f"a.{suffix}", save_all=True, append_images=frames[1:])
    assert np.abs(corners_of(read_image(path)) - [255, 0, 0]).max() < 10


def test_arrays_and_tensors_of_each_type_give_the_same_picture():
    array = np.asarray(make_quadrants())
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    opaque = np.dstack([array, np.full(array.shape[:2], 255, np.uint8)])
    same = [array, opaque, array / 255, array.astype(np.uint16) * 257, array.astype(np.int64) * 257]
    same += [tensor, tensor / 255, (tensor / 255).half(), array[::1, :, :]]
    for source in same:
        assert np.array_equal(np.asarray(read_image(source).image), array)
    grey = array[..., 0]
    for source in (grey, grey[..., None], grey > 0, torch.from_numpy(grey.copy()), torch.from_numpy(grey.copy())[None]):
        assert np.array_equal(np.asarray(read_image(source).image), np.repeat(grey[..., None], 3, axis=2))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((3, 16, 16), np.uint8), r"an array must be \(H, W\).*got \(3, 16, 16\)"),
        (torch.zeros(1, 3, 16, 16), r"a tensor must be \(C, H, W\).*got \(1, 3, 16, 16\)"),
        (np.full((16, 16, 3), 200.0), r"floating values must lie in \[0, 1\]; these range from 200 to 200"),
        (np.full((16, 16), np.nan), "floating values"),
        (np.full((16, 16), -1), "16 bits"),
        (np.zeros((16, 16), complex), "type complex128"),
        (np.full((16, 16), 200), r"int64 values up to 200 may be of 8 or 16 bits; make them uint8"),
        (np.zeros((16, 4, 3), np.uint8), "4 x 16 px is too small; both sides need at least 8"),
        (Image.fromarray(np.full((16, 16), 1e5, np.float32)), "the PIL image: floating values"),
        ("no/such/file.jpg", "no/such/file.jpg: no such image"),
        (42, "an image is a path.*got int"),
    ],
)
def test_what_cannot_be_an_image_is_refused(source, message):
    with pytest.raises(ImageError, match=message):
        read_image(source)


def test_damaged_files_are_named(tmp_path):
    text, empty, cut, folder = (tmp_path / name for name in ("text.jpg", "empty.png", "cut.jpg", "folder.png"))
    text.write_text("not an image")
    empty.touch()
    folder.mkdir()
    whole = save(tmp_path, Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)), "w.jpg")
    cut.write_bytes(whole.read_bytes()[:800])
    for path, reason in ((text, "not an image"), (empty, "file is empty"), (cut, "damaged"), (folder, "directory")):
        with pytest.raises(ImageError, match=rf"{path}.*{reason}"):
            read_image(path)


def test_heic_and_dangling_links_are_explained(tmp_path):
    photo, link = tmp_path / "photo.heic", tmp_path / "link.jpg"
    photo.write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    link.symlink_to(tmp_path / "gone.jpg")
    for source in (photo, io.BytesIO(photo.read_bytes())):
        with pytest.raises(ImageError, match="HEIC photos are not read; convert it to JPEG .*pillow-heif"):
            read_image(source)
    for read in (read_image, read_size):
        with pytest.raises(ImageError, match="link.jpg: no such image .it is a link to .*gone.jpg, which is not there"):
            read(link)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_exif_counts_as_none(tmp_path):
    path = save(tmp_path, make_quadrants(), "exif.jpg", exif=b"Exif\0\0MM\0\x2a\0\0\xff\xff garbage")
    assert read_image(path).size == read_size(path) == (24, 40)


def test_too_many_pixels_are_refused_before_decoding(tmp_path):
    path = save(tmp_path, make_quadrants(), "a.png")
    with pytest.raises(ImageError, match="a.png: 40 x 24 px is more than the limit of 0 megapixels"):
        read_image(path, max_pixels=900)
    bomb = bytearray(path.read_bytes())
    bomb[16:24] = (200_000).to_bytes(4, "big") * 2  # the header claims 40 gigapixels
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    path.write_bytes(bomb)
    with pytest.raises(ImageError, match="a.png: .*decompression bomb"):
        read_image(path)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK"])
def test_large_images_are_reduced_and_keep_their_coordinates(tmp_path, monkeypatch, mode):
    monkeypatch.setattr(utils.image, "KEEP_PIXELS", 2_000)
    image = make_quadrants(161, 96).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    if mode == "CMYK" or mode == "RGB":
        path = save(tmp_path, image.transpose(Image.Transpose.ROTATE_90), "a.jpg", exif=exif, quality=95)
    else:
        path = save(tmp_path, image.transpose(Image.Transpose.ROTATE_90), "a.png", exif=exif)
    picture = read_image(path)
    assert picture.size == (96, 161) and picture.image.width * picture.image.height <= 2_000
    assert np.abs(corners_of(picture) - CORNERS).max() < 40
    ends = picture.to_pixels(np.array([[-0.5, -0.5], [160.5, 95.5]], np.float32))
    expected = [[-0.5, -0.5], [picture.image.width - 0.5, picture.image.height - 0.5]]
    np.testing.assert_allclose(ends, expected, atol=1e-4)


def test_a_hundred_megapixels(tmp_path):
    path = save(tmp_path, make_quadrants(12_500, 8_000), "huge.jpg")
    picture = read_image(path)
    assert picture.size == (8_000, 12_500) and picture.image.width * picture.image.height <= utils.image.KEEP_PIXELS
    assert np.abs(corners_of(picture) - CORNERS).max() < 10
