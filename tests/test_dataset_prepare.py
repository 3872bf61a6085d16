"""Downloading from a local server, resuming, unpacking safely, checking."""

import http.server
import io
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from dataset import BENCHMARKS
from dataset import prepare as p
from tests.fixtures_dataset import tiny_pfpascal, tiny_pfwillow, tiny_spair

REPOSITORY = Path(__file__).resolve().parents[1]
SPAIR_COUNTS = {"trn": 6, "val": 2, "test": 4, "images": 6}


class RangeHandler(http.server.BaseHTTPRequestHandler):
    """Serves `server.files` with byte ranges; `server.cut` closes that many answers half way."""

    def do_GET(self):
        self.server.requests.append((self.path, self.headers.get("Range")))
        content = self.server.files.get(self.path)
        if content is None:
            return self.send_error(404)
        total, start = len(content), 0
        if self.server.ranges and (asked := self.headers.get("Range")):
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= total:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{total}")
                return self.end_headers()
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(total - start))
        self.end_headers()
        end = total
        if self.server.cut > 0:
            self.server.cut, end = self.server.cut - 1, start + (total - start) // 2
        self.wfile.write(content[start:end])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # whatever the user's environment says
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), RangeHandler) as server:
        server.files, server.requests, server.ranges, server.cut = {}, [], True, 0
        server.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()


def tar_bytes(folder, *more):
    """`folder` under its own name as tar.gz, with further (name or TarInfo, content) members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as file:
        file.add(folder, folder.name)
        for name, content in more:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def zip_bytes(root, *names, extra=()):
    """The files below `root` whose path starts with one of the `names`, as a zip."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for path in sorted(root.rglob("*")):
            name = path.relative_to(root).as_posix()
            if path.is_file() and name.startswith(names):
                file.writestr(name, path.read_bytes())
        for name, content in extra:
            file.writestr(name, content)
    return buffer.getvalue()


@pytest.fixture
def prepare(server, monkeypatch):
    """prepare(name, root, counts, **more): the data set from the server, in `root`/<its folder>, then checked."""

    def run(name, root, counts, **more):
        monkeypatch.setitem(p.EXPECTED, name, counts)
        folder = root / BENCHMARKS[name].FOLDER
        p.prepare(name, folder, (f"{server.url}/archive", f"{server.url}/pairs"), **more)
        p.check(name, folder)
        return folder

    return run


def fetch(server, file):
    p.download(p.PARTS["spair"][0], f"{server.url}/a", file)


# Downloading


def test_download_and_resume(server, tmp_path):
    content = bytes(range(256)) * 400
    server.files["/a"] = content
    file = tmp_path / "new" / "a.bin"
    fetch(server, file)
    assert file.read_bytes() == content and server.requests == [("/a", None)]
    file.unlink()
    part = tmp_path / "new" / "a.bin.part"
    part.write_bytes(content[:1000])
    fetch(server, file)
    assert file.read_bytes() == content and not part.exists()
    assert server.requests[-1] == ("/a", "bytes=1000-")


def test_connection_lost_half_way(server, tmp_path):
    server.files["/a"] = content = bytes(range(256)) * 90_000
    server.cut = 1
    fetch(server, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == content
    assert server.requests[1] == ("/a", f"bytes={10 << 20}-")  # whole blocks are kept


def test_server_without_ranges_starts_over(server, tmp_path):
    server.files["/a"], server.ranges = b"x" * 5000, False
    (tmp_path / "a.part").write_bytes(b"y" * 3000)
    fetch(server, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"x" * 5000


@pytest.mark.parametrize("have", [b"x" * 5000, b"y" * 6000])
def test_part_that_is_whole_or_too_long(server, tmp_path, have):
    server.files["/a"] = b"x" * 5000
    (tmp_path / "a.part").write_bytes(have)
    fetch(server, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"x" * 5000


def test_failed_download_says_how_to_go_on(server, tmp_path, prepare):
    with pytest.raises(p.PrepareError) as error:
        prepare("pfpascal", tmp_path, {})
    text = str(error.value)
    assert "404" in text and "https://www.di.ens.fr/willow/research/proposalflow/" in text
    assert f"  {tmp_path / 'download' / 'PF-dataset-PASCAL.zip'}\n" in text
    assert len(server.requests) == 1


def test_unreachable_mirror_says_how_to_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    part = p.PARTS["pfwillow"][1]
    with pytest.raises(p.PrepareError, match=r"(?s)could not download http://127.0.0.1:9/x \(.*\).*by hand.*--pairs"):
        p.download(part, "http://127.0.0.1:9/x", tmp_path / "x")


# Whole runs


def test_spair_from_server_twice(server, tmp_path, prepare, capsys):
    source = tiny_spair(tmp_path / "source")
    server.files["/archive"] = tar_bytes(source, ("SPair-71k/._Layout", b"x"), ("SPair-71k/README", b"hello"))
    folder = prepare("spair", tmp_path / "asset", SPAIR_COUNTS)
    assert {path.name for path in folder.iterdir()} == {"Layout", "PairAnnotation", "JPEGImages", "README", ".index"}
    assert "spair is complete: 6 trn, 2 val, 4 test, 6 images" in capsys.readouterr().out
    prepare("spair", tmp_path / "asset", SPAIR_COUNTS)
    assert "found Layout, PairAnnotation, JPEGImages in" in capsys.readouterr().out
    assert len(server.requests) == 1


def test_archive_put_there_by_hand(tmp_path, server, prepare):
    source = tiny_pfwillow(tmp_path / "source")
    archive = tmp_path / "asset" / "download" / "PF-dataset.zip"
    archive.parent.mkdir(parents=True)
    archive.write_bytes(zip_bytes(source, "PF-dataset/", extra=[("__MACOSX/PF-dataset/x", b"x")]))
    server.files["/pairs"] = (source / "test_pairs.csv").read_bytes()
    folder = prepare("pfwillow", tmp_path / "asset", {"test": 4})
    assert [path for path, _ in server.requests] == ["/pairs"]
    assert {path.name for path in folder.iterdir()} == {"PF-dataset", "test_pairs.csv", ".index"}


@pytest.mark.parametrize("train", ["trn", "train"])  # NCNet's lists are called train_pairs.csv
def test_pfpascal_with_pairs_from_everywhere(server, tmp_path, prepare, train):
    source = tiny_pfpascal(tmp_path / "source")
    expected = (source / "trn_pairs.csv").read_bytes()
    server.files["/archive"] = zip_bytes(source, "PF-dataset-PASCAL/")
    lists = tmp_path / "lists"
    (lists / "inner").mkdir(parents=True)
    for name in ("trn", "val", "test"):
        shutil.move(source / f"{name}_pairs.csv", lists / "inner" / f"{train if name == 'trn' else name}_pairs.csv")
    server.files["/pairs"] = zip_bytes(lists, "inner/")
    counts = {"trn": 4, "val": 2, "test": 2}
    zipped = prepare("pfpascal", tmp_path / "a", counts)
    given = prepare("pfpascal", tmp_path / "b", counts, pairs=lists / "inner")
    shutil.copytree(lists / "inner", tmp_path / "c" / "pf-pascal")
    there = prepare("pfpascal", tmp_path / "c", counts)
    assert all((folder / "trn_pairs.csv").read_bytes() == expected for folder in (zipped, given, there))
    with pytest.raises(p.PrepareError, match="--pairs .*: trn_pairs.csv, val_pairs.csv, test_pairs.csv not found"):
        prepare("pfpascal", tmp_path / "d", counts, pairs=tmp_path)


def test_what_is_there_is_kept(server, tmp_path, prepare, capsys):
    source = tiny_spair(tmp_path / "source")
    server.files["/archive"] = tar_bytes(source)
    folder = tmp_path / "SPair-71k"
    (folder / "JPEGImages").mkdir(parents=True)
    (folder / ".unpack").mkdir()
    with pytest.raises(p.PrepareError, match="(?s)images are missing.*JPEGImages has 0 images, expected 6.*move the"):
        prepare("spair", tmp_path, SPAIR_COUNTS)
    assert f"kept {folder / 'JPEGImages'}" in capsys.readouterr().out
    assert not (folder / ".unpack").exists()
    shutil.rmtree(folder / "JPEGImages")
    prepare("spair", tmp_path, SPAIR_COUNTS)
    assert len(server.requests) == 1


# Unpacking

ESCAPING = ["../escape", "/tmp/escape-absolute", "a/../../escape", "C:\\escape", "PF-dataset/..\\..\\escape"]


@pytest.mark.parametrize("name", ESCAPING)
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_members_that_escape_are_refused(server, tmp_path, prepare, kind, name):
    if kind == "tar":
        server.files["/archive"] = tar_bytes(tiny_spair(tmp_path / "source"), (name, b"x"))
    else:
        server.files["/archive"] = zip_bytes(tiny_spair(tmp_path / "source"), "", extra=[(name, b"x")])
    with pytest.raises(p.PrepareError, match="refused, its member .* leaves the target folder"):
        prepare("spair", tmp_path / "asset", SPAIR_COUNTS)
    assert list((tmp_path / "asset/SPair-71k").iterdir()) == [] and not list(tmp_path.rglob("*escape*"))


@pytest.mark.parametrize("target", ["../../outside", "Layout", "/etc", "../JPEGImages", "x/../../../../../outside"])
@pytest.mark.parametrize("kind", ["symbolic", "hard", "device", "zip"])
def test_links_and_devices_are_refused(server, tmp_path, prepare, kind, target):
    source = tiny_spair(tmp_path / "source")
    if kind == "zip":
        info = zipfile.ZipInfo("SPair-71k/link")
        info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        server.files["/archive"] = zip_bytes(source.parent, "", extra=[(info, target)])
    else:
        info = tarfile.TarInfo("SPair-71k/link")
        info.linkname = target
        info.type = {"symbolic": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE, "device": tarfile.FIFOTYPE}[kind]
        server.files["/archive"] = tar_bytes(source, (info, b""))
    with pytest.raises(p.PrepareError, match="refused, its member 'SPair-71k/link' is a link or device"):
        prepare("spair", tmp_path / "asset", SPAIR_COUNTS)
    assert list((tmp_path / "asset/SPair-71k").iterdir()) == []


@pytest.mark.parametrize(("limit", "value"), [("MAX_UNPACKED", 4000), ("MAX_MEMBERS", 5)])
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_unpacked_size_is_bounded(server, tmp_path, prepare, monkeypatch, kind, limit, value):
    source = tiny_spair(tmp_path / "source")
    server.files["/archive"] = tar_bytes(source) if kind == "tar" else zip_bytes(source.parent, "")
    monkeypatch.setattr(p, limit, value)
    with pytest.raises(p.PrepareError, match="refused, it holds more than"):
        prepare("spair", tmp_path / "asset", SPAIR_COUNTS)
    assert list((tmp_path / "asset/SPair-71k").iterdir()) == []


def test_modes_of_members_are_sane(server, tmp_path, prepare):
    info = tarfile.TarInfo("SPair-71k/README")
    info.mode, info.uid, info.size = 0o6777, 12345, 1
    server.files["/archive"] = tar_bytes(tiny_spair(tmp_path / "source"), (info, b"x"))
    readme = prepare("spair", tmp_path, SPAIR_COUNTS) / "README"
    assert readme.stat().st_uid == os.getuid()
    assert readme.stat().st_mode & (stat.S_ISUID | stat.S_ISGID | stat.S_IWOTH | stat.S_IWGRP) == 0


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda b: b[: len(b) // 2], "is damaged .*Delete it and run again"),
        (lambda b: b[:2000] + bytes(50) + b[2050:], "is damaged .*Delete it and run again"),
        (lambda b: b"<!DOCTYPE html>", "is no tar or zip archive: it starts with b'<!DOCTYPE"),
    ],
)
def test_damaged_archives(server, tmp_path, prepare, spoil, message):
    server.files["/archive"] = spoil(tar_bytes(tiny_spair(tmp_path / "source")))
    with pytest.raises(p.PrepareError, match=message):
        prepare("spair", tmp_path / "asset", SPAIR_COUNTS)
    assert list((tmp_path / "asset/SPair-71k").iterdir()) == []


def test_encrypted_zip(server, tmp_path, prepare):
    content = bytearray(zip_bytes(tiny_spair(tmp_path / "source"), ""))
    entry = content.index(b"PK\1\2")
    content[6] |= 1  # of the first file's own header
    content[entry + 8] |= 1  # of its entry in the list
    server.files["/archive"] = bytes(content)
    with pytest.raises(p.PrepareError, match="is damaged .*encrypted"):
        prepare("spair", tmp_path / "asset", SPAIR_COUNTS)


def test_another_archive(server, tmp_path, prepare):
    server.files["/archive"] = tar_bytes(tiny_pfwillow(tmp_path / "source"))
    with pytest.raises(p.PrepareError, match="does not hold Layout, PairAnnotation, JPEGImages in one folder"):
        prepare("spair", tmp_path, SPAIR_COUNTS)


# Checking and the command


def test_check_counts_and_content(tmp_path):
    root = tiny_spair(tmp_path)
    assert p.find_problems("spair", root, SPAIR_COUNTS) == []
    problems = p.find_problems("spair", root, p.EXPECTED["spair"])
    assert problems[0] == "split trn has 6 pairs, expected 53,340"
    assert problems[-1] == "JPEGImages has 6 images, expected 1,800"
    next((root / "PairAnnotation/val").iterdir()).write_text("{")
    problems = p.find_problems("spair", root, SPAIR_COUNTS)
    assert len(problems) == 1 and "not valid JSON" in problems[0]


def test_expected_counts_are_the_published_ones():
    assert p.EXPECTED["spair"] == {"trn": 53340, "val": 5384, "test": 12234, "images": 1800}
    assert p.EXPECTED["pfpascal"] == {"trn": 2940, "val": 308, "test": 299}
    assert p.EXPECTED["pfwillow"] == {"test": 900}


@pytest.mark.parametrize("spoil", ["empty", "truncated", "text", "size"])
def test_images_are_decoded_to_their_end(tmp_path, spoil):
    root = tiny_spair(tmp_path)
    image = sorted(root.glob("JPEGImages/cat/*.jpg"))[1]
    content = image.read_bytes()
    if spoil == "size":
        Image.new("RGB", (30, 20)).save(image)
    else:
        image.write_bytes({"empty": b"", "truncated": content[: len(content) * 9 // 10], "text": b"no image"}[spoil])
    problems = p.find_problems("spair", root, SPAIR_COUNTS)
    expected = {"size": r"has size \(H, W\) = \(20, 30\)", "truncated": "is damaged and cannot be decoded"}
    assert len(problems) == 1
    assert re.fullmatch(f"{image} {expected.get(spoil, 'cannot be opened')}.*", problems[0])


def run_script(folder, *arguments, **environment):
    command = ["sh", str(REPOSITORY / "script" / "prepare_data.sh"), *arguments]
    environment = {**os.environ, "PYTHON": sys.executable, **environment}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)


def test_script_checks_and_fails_clearly(tmp_path):
    tiny_pfwillow(tmp_path)
    done = run_script(tmp_path, "pfwillow", "--root", ".", "--check")
    assert done.returncode == 1 and "split test has 4 pairs, expected 900" in done.stderr
    assert "sh script/prepare_data.sh pfwillow --root ." in done.stderr
    assert run_script(tmp_path, "spair", "--pairs", "x").returncode == 2
    assert run_script(tmp_path, "spiar").returncode == 2


@pytest.mark.parametrize("root", ["pf-willow", "renamed"])
def test_folder_of_the_data_set_is_no_root(tmp_path, root):
    shutil.move(tiny_pfwillow(tmp_path / "source"), tmp_path / root)
    done = run_script(tmp_path, "pfwillow", "--root", root)
    assert done.returncode == 1 and f"holds pf-willow/: pass {tmp_path}\n" in done.stderr
    assert {path.name for path in (tmp_path / root).iterdir()} == {"PF-dataset", "test_pairs.csv"}


def test_check_needs_no_torch(tmp_path):
    """The script takes a Python that has only what the check itself imports."""
    tiny_pfwillow(tmp_path)
    for name in ("torch", "diffusers", "transformers", "torchvision", "accelerate"):
        (tmp_path / "without" / name).mkdir(parents=True)
        (tmp_path / "without" / name / "__init__.py").write_text(f"raise ImportError('no {name} here')")
    done = run_script(tmp_path, "pfwillow", "--root", ".", "--check", PYTHONPATH=str(tmp_path / "without"))
    assert "split test has 4 pairs, expected 900" in done.stderr
