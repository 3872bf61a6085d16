"""The app and the page of results in a real browser: what a user sees and does."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.running import running_app

pytestmark = pytest.mark.browser
HOW = "sh script/install_browser.sh installs what is missing"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
LAPTOP, PHONE = {"width": 1366, "height": 768}, {"width": 390, "height": 844}
CELLS = 24  # of the mini networks' feature maps, along each side
PATIENCE = 90_000  # ms; a busy machine is slow


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    sync_api = pytest.importorskip("playwright.sync_api", reason=f"playwright is not installed; {HOW}")
    if CHROMIUM is None:
        pytest.skip(f"there is no Chromium; {HOW}")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def url(browser, tmp_path_factory):
    """demo.py as a user starts it, with the mini networks."""
    pytest.importorskip("gradio", reason=f"gradio is not installed; {HOW}")
    with running_app(tmp_path_factory.mktemp("demo"), "--max_upload_mb", "1") as (server, port):
        yield f"http://127.0.0.1:{port}/"
        assert server.poll() is None


@pytest.fixture
def open_page(browser, url):
    """Opens pages in browsers that know nothing of each other; whatever is asked of another machine is noted."""
    contexts, foreign = [], []

    def note(request):
        if not request.url.startswith((url, "data:", "blob:", "file:")):
            foreign.append(request.url)

    def open_page(viewport=LAPTOP, address=url):
        context = browser.new_context(viewport=viewport)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("request", note)
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert foreign == []


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """A picture whose places all look different."""
    y, x = np.mgrid[:160, :200]
    rng = np.random.default_rng(0)
    blocks = np.kron(rng.integers(0, 255, (10, 10, 3)), np.ones((16, 20, 1)))
    shade = np.stack([x * 1.2, y * 1.5, x + y], axis=-1)
    path = tmp_path_factory.mktemp("image") / "blocks.png"
    Image.fromarray(((blocks + shade) / 2).clip(0, 255).astype(np.uint8)).save(path)
    return path


def upload(page, source, target):
    """Both files, and wait for their features."""
    page.locator(".stage").wait_for()
    for side, path in (("source", source), ("target", target)):
        page.set_input_files(f"input[data-side={side}]", str(path))
        page.locator(f".frame.{side}:not(.empty)").wait_for()
    page.locator(".stage[data-ready=true]").wait_for()


def choose_setting(page, name, value):
    page.get_by_text("Settings").click()
    page.get_by_label(name).click()
    page.get_by_role("option", name=value, exact=True).click()
    page.get_by_text("Settings").click()


def click(page, x, y):
    """Click at a relative place of the source."""
    frame = page.locator(".frame.source")
    frame.scroll_into_view_if_needed()
    box = frame.bounding_box()
    page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])


def places(page, side):
    """{number: relative (x, y)} of the markers as they lie on the screen."""
    return page.evaluate(
        """side => {
            const frame = document.querySelector(`.frame.${side}`).getBoundingClientRect();
            return Object.fromEntries([...document.querySelectorAll(`.frame.${side} .marker`)].map((marker) => {
                const dot = marker.querySelector(".dot").getBoundingClientRect();
                const [x, y] = [dot.left + dot.width / 2, dot.top + dot.height / 2];
                return [marker.dataset.number, [(x - frame.left) / frame.width, (y - frame.top) / frame.height]];
            }));
        }""",
        side,
    )


def wait_for_points(page, count):
    page.wait_for_function(
        "count => document.querySelectorAll('.frame.target .marker').length === count", arg=count, timeout=PATIENCE
    )


def test_points_of_identical_images_are_found_where_they_are(open_page, image):
    page = open_page()
    upload(page, image, image)
    choose_setting(page, "Localiser", "nn")
    clicks = {"1": (0.3, 0.4), "2": (0.7, 0.6), "3": (0.5, 0.2)}
    for number, place in clicks.items():
        click(page, *place)
        wait_for_points(page, int(number))
    assert places(page, "source") == {n: pytest.approx(place, abs=0.01) for n, place in clicks.items()}
    assert places(page, "target") == {n: pytest.approx(place, abs=1.1 / CELLS) for n, place in clicks.items()}
    assert page.locator(".frame.target .heat").is_visible()
    assert page.locator(".list tbody tr").count() == 3
    assert "Point 3" in page.locator(".stage .status").inner_text()
    latency = int(page.locator(".stage").get_attribute("data-latency-ms"))
    print(f"click to marker: {latency} ms")
    assert latency < 5000

    page.get_by_role("button", name="Show the heat map of point 1").click()
    page.locator(".frame.source .marker.selected[data-number='1']").wait_for()
    page.get_by_role("button", name="Remove point 2").click()
    wait_for_points(page, 2)
    page.get_by_role("button", name="Undo").click()
    wait_for_points(page, 1)
    page.get_by_role("button", name="Clear points").click()
    wait_for_points(page, 0)
    assert not page.locator(".frame.target .heat").is_visible()


def test_swap_exchanges_images_and_points(open_page, image, tmp_path):
    wide = tmp_path / "wide.png"
    Image.open(image).resize((300, 120)).save(wide)
    page = open_page()
    upload(page, image, wide)
    click(page, 0.3, 0.4)
    wait_for_points(page, 1)
    found = places(page, "target")["1"]
    page.get_by_text("200 × 160 px").wait_for()
    page.get_by_role("button", name="Swap images").click()
    page.locator("figcaption").first.get_by_text("300 × 120 px").wait_for()
    wait_for_points(page, 1)
    assert places(page, "source")["1"] == pytest.approx(found, abs=0.01)


def test_bad_files_get_a_message_and_the_app_goes_on(open_page, image, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image at all")
    (tmp_path / "large.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(2 * 2**20))
    Image.new("RGB", (4, 4)).save(tmp_path / "tiny.png")
    page = open_page()
    page.locator(".stage").wait_for()
    page.set_input_files("input[data-side=source]", str(tmp_path / "large.png"))
    page.get_by_text("large.png has more than 1 MB").wait_for()
    page.set_input_files("input[data-side=source]", str(tmp_path / "bad.png"))
    page.get_by_text("bad.png cannot be opened: not an image").wait_for()
    page.set_input_files("input[data-side=source]", str(tmp_path / "tiny.png"))
    page.get_by_text("too small").wait_for()
    upload(page, image, image)
    click(page, 0.5, 0.5)
    wait_for_points(page, 1)


def test_keyboard_alone_places_points(open_page, image):
    page = open_page()
    upload(page, image, image)
    page.locator(".frame.source").focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowUp", "Shift+ArrowLeft", "Enter"):
        page.keyboard.press(key)
    wait_for_points(page, 1)
    x, y = places(page, "source")["1"]
    assert (x * 200 - 0.5, y * 160 - 0.5) == (pytest.approx(107, abs=1), pytest.approx(76, abs=1))
    page.get_by_label("x", exact=True).focus()
    page.keyboard.type("20")
    page.keyboard.press("Tab")
    page.keyboard.type("30")
    page.keyboard.press("Enter")
    wait_for_points(page, 2)
    assert places(page, "source")["2"] == pytest.approx((20.5 / 200, 30.5 / 160), abs=0.01)
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.locator(".frame.source").focus()
    page.keyboard.press("Delete")
    wait_for_points(page, 1)


def test_points_and_picture_are_saved(open_page, image, tmp_path):
    page = open_page()
    upload(page, image, image)
    click(page, 0.25, 0.5)
    wait_for_points(page, 1)
    with page.expect_download() as download:
        page.get_by_role("button", name="Save JSON").click()
    download.value.save_as(tmp_path / "matches.json")
    content = json.loads((tmp_path / "matches.json").read_text())
    assert content["source"]["width"] == 200 and content["settings"]["prompt"] == "text"
    assert [content["points"][0]["x"], content["points"][0]["y"]] == pytest.approx([49.5, 79.5], abs=1)
    with page.expect_download() as download:
        page.get_by_role("button", name="Save picture").click()
    download.value.save_as(tmp_path / "matches.png")
    with Image.open(tmp_path / "matches.png") as picture:
        assert picture.height == 900 and picture.width > 2000


@pytest.mark.parametrize("viewport", [LAPTOP, PHONE], ids=["laptop", "phone"])
def test_example_and_overlay_fit_the_screen(open_page, request, viewport):
    page = open_page(viewport)
    page.locator("#examples button").first.click()
    page.locator(".stage[data-ready=true]").wait_for()
    for number, place in enumerate(((0.5, 0.3), (0.3, 0.6), (0.7, 0.6)), start=1):
        click(page, *place)
        wait_for_points(page, number)
    take_picture(page, f"app_{request.node.callspec.id}.png")
    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    for frame in ("source", "target"):
        box = page.locator(f".frame.{frame}").bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= viewport["width"]
    page.get_by_role("tab", name="Overlay").click()
    page.locator(".overlay[data-state=ready]").wait_for()
    assert page.locator(".overlay .frame img").count() == 2


def test_an_edit_is_painted_and_carried(open_page, image):
    page = open_page()
    page.locator(".stage").wait_for()
    page.get_by_role("tab", name="Edit").click()
    page.get_by_text("Choose a source and a target image").last.wait_for()
    page.get_by_role("tab", name="Points").click()
    upload(page, image, image)
    choose_setting(page, "Localiser", "nn")
    page.get_by_role("tab", name="Edit").click()
    page.locator(".painting[data-state=ready]").wait_for()
    page.get_by_role("button", name="Carry to the target").click()
    page.get_by_text("nothing is painted yet").wait_for()
    box = page.locator(".painting canvas").bounding_box()
    x, y = box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"]
    page.mouse.move(x - 0.2 * box["width"], y)
    page.mouse.down()
    page.mouse.move(x + 0.2 * box["width"], y, steps=5)
    page.mouse.up()
    page.get_by_role("button", name="Carry to the target").click()
    page.get_by_text("Carried: it covers").wait_for()
    colour = page.evaluate(  # of the middle of the target, on which the middle of the source lies
        """() => {
            const image = document.querySelector(".painting .paper.result img");
            const canvas = document.createElement("canvas");
            [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
            const pen = canvas.getContext("2d");
            pen.drawImage(image, 0, 0);
            return [...pen.getImageData(canvas.width / 2, canvas.height / 2, 1, 1).data];
        }"""
    )
    assert np.abs(np.array(colour[:3]) - (0xE6, 0x19, 0x4B)).max() < 30
    take_picture(page, "edit.png")


def test_points_of_a_slow_method_show_progress_and_are_cancelled(open_page):
    page = open_page()
    page.locator("#examples button").first.click()
    page.locator(".stage[data-ready=true]").wait_for()
    choose_setting(page, "Method", "ldm_correspondence")
    for place in ((0.5, 0.4), (0.3, 0.6)):
        click(page, *place)
    page.get_by_text("point 1; remove it to cancel").wait_for()
    assert page.evaluate("getComputedStyle(document.querySelector('#stage .pending')).opacity") == "1"
    take_picture(page, "progress.png")
    page.get_by_role("button", name="Remove point 1").click()
    page.locator(".frame.target .marker[data-number='2']").wait_for()
    assert page.locator(".frame.source .marker").count() == page.locator(".frame.target .marker").count() == 1
    assert page.locator(".frame.target .heat").is_visible()
    page.get_by_role("tab", name="Overlay").click()
    page.get_by_text("This method matches point by point").wait_for()


def test_texts_are_compared_with_bars_and_maps_of_words(open_page):
    page = open_page()
    page.get_by_role("tab", name="Texts").click()
    texts = page.locator("#texts textarea")
    texts.fill("a dog\na red car on a street")
    page.get_by_role("button", name="Compare").click()
    page.get_by_text("Choose a source and a target image").last.wait_for()
    page.locator("#examples button").first.click()
    page.locator(".stage[data-ready=true]").wait_for(state="attached")  # on another tab
    page.get_by_role("button", name="Compare").click()
    page.locator("#scores table").wait_for()
    assert page.locator("#scores th").all_inner_texts() == ["text", "score", "attention", "gain in noise prediction"]
    rows = page.locator("#scores tr").filter(has=page.locator("td"))
    shown = [row.locator("td").all_inner_texts() for row in rows.all()]
    assert {row[0] for row in shown} == {"a dog", "a red car on a street"}
    scores = np.array([row[1:] for row in shown], float)
    assert scores[0, 0] >= scores[1, 0] and np.allclose(scores[:, 0], scores[:, 1] + scores[:, 2], atol=2e-4)
    bars = page.locator("#scores .meter")
    assert bars.count() == 6 and bars.first.bounding_box()["width"] > 50
    assert page.locator("#scores figcaption").all_inner_texts() == ["the image", *shown[0][0].split()]
    assert page.evaluate("[...document.querySelectorAll('#scores img')].every((image) => image.naturalWidth > 0)")
    take_picture(page, "texts.png")


def take_picture(page, name):
    """For people to look at, if the environment says where to."""
    if folder := os.environ.get("APP_PICTURES"):
        page.evaluate("scrollTo(0, 0)")
        page.screenshot(path=os.path.join(folder, name), full_page=True)


def test_five_browsers_at_once_lose_no_click(open_page, image):
    pages = [open_page() for _ in range(5)]
    for page in pages:
        upload(page, image, image)
    rng = np.random.default_rng(0)
    clicks = rng.uniform(0.05, 0.95, (len(pages), 10, 2))
    for turn in range(10):
        for page, own in zip(pages, clicks, strict=True):
            box = page.locator(".frame.source").bounding_box()
            page.evaluate(  # clicks the frame itself, also where a marker lies
                """([x, y]) => document.querySelector(".frame.source").dispatchEvent(
                    new MouseEvent("click", { clientX: x, clientY: y, bubbles: true }))""",
                [box["x"] + own[turn, 0] * box["width"], box["y"] + own[turn, 1] * box["height"]],
            )
    for page, own in zip(pages, clicks, strict=True):
        wait_for_points(page, 10)
        asked = np.array(sorted(places(page, "source").values()))
        assert np.allclose(asked, np.array(sorted(own.tolist())), atol=0.01)


def test_results_are_sorted_filtered_and_shown(open_page, tmp_path, world, fresh_accelerator):
    from app.viewer import build_pages, find_results
    from tests.test_test import evaluate

    for prompt in ("text", "empty"):
        evaluate(world, tmp_path, prompt)
    (result,) = build_pages(find_results([str(tmp_path)]), ["kernelsoftmax"])
    result.write(tmp_path / "viewer.html")
    page = open_page(address=f"file://{tmp_path}/viewer.html")
    assert page.locator("#rows tr").count() == 4
    shares = page.locator("#rows td:first-child").all_inner_texts()
    assert shares == sorted(shares, key=lambda text: float(text.split()[0]))
    page.get_by_label("Category").select_option("cat")
    assert page.locator("#rows tr").count() == 2 and "2 of 4 pairs" in page.locator("#summary").inner_text()
    page.locator("#rows").focus()
    page.keyboard.press("ArrowDown")
    assert page.locator("#rows tr[aria-selected=true]").count() == 1
    assert page.locator("#rows tr").nth(1).get_attribute("aria-selected") == "true"
    assert page.locator("#detail .frame").count() == 3
    page.wait_for_function("[...document.querySelectorAll('#detail img')].every((image) => image.naturalWidth > 0)")
    method = page.locator("#detail figcaption").nth(1).inner_text()
    right = page.locator("#detail figure").nth(1).locator("circle[fill='var(--right)']").count()
    assert f"{right} of 5 right" in method
    take_picture(page, "viewer.png")
    page.get_by_label("Pair", exact=True).fill("no such pair")
    assert page.get_by_text("No pair fits").is_visible()


def test_a_click_on_a_point_opens_its_maps(open_page, tmp_path, world, fresh_accelerator):
    from app.viewer import build_pages, find_results
    from tests.test_ldm_correspondence import score

    score(world, tmp_path, "TEST.PICTURES", "1")
    (result,) = build_pages(find_results([str(tmp_path)]), ["centre"])
    result.write(tmp_path / "viewer.html")
    page = open_page(address=f"file://{tmp_path}/viewer.html")
    drawn = page.evaluate("data.methods[0].maps.map((maps) => maps !== null)")
    page.locator(f"#rows tr[data-pair='{drawn.index(False)}']").click()
    page.get_by_text("The maps of this pair were not drawn").wait_for()
    page.locator(f"#rows tr[data-pair='{drawn.index(True)}']").click()
    pairs, count = page.locator("#detail .frame"), page.locator("#detail .bar button").count()
    assert page.locator("#lines line").count() == count == page.evaluate("data.pairs[state.chosen].n")
    for frame, number in ((0, 2), (1, 1)):  # of the source, of the target
        mark = pairs.nth(frame).locator(f".point[data-point='{number - 1}'] circle").last
        mark.dispatch_event("click")  # another mark may lie on it
        page.get_by_text(f"Attention of point {number}, ldm_correspondence").wait_for()
    page.wait_for_function("document.querySelector('#maps img').naturalWidth > 0")
    page.wait_for_function("scrollY > 0 || document.scrollingElement.scrollHeight <= innerHeight")
    take_picture(page, "maps.png")
