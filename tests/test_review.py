"""The page that labels are looked through on: what it saves, what it refuses, and in a real browser."""

import json
import threading
import urllib.error
import urllib.request

import pytest

from app.review import Review
from app.serve import build_server
from dataset.annotation import read_labels
from tests.command import call
from tests.fixtures_dataset import to_coco
from tests.test_browser import LAPTOP, browser, take_picture  # noqa: F401
from tests.test_transfer import NAMES, coco, write


@pytest.fixture
def labels(tmp_path):
    """Three objects as transfer.py writes them; the second is the least confident."""
    content = coco(tmp_path / "images", [2, 3, 4])
    for annotation, score in zip(content["annotations"], (0.5, 0.1, 0.9), strict=True):
        found = [v if i % 3 < 2 else score for i, v in enumerate(annotation["keypoints"])]
        annotation |= {"score": score, "found": found}
    content["annotations"][1]["keypoints"][:3] = [0, 0, 0]  # hidden by the threshold
    content |= {"info": {"description": "as it was"}}
    return write(tmp_path / "labels.json", content)


@pytest.fixture
def serve(labels):
    server = build_server(Review(labels, labels.parent / "images"), "127.0.0.1", 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def post(url, body, **headers):
    request = urllib.request.Request(f"{url}/save", body.encode(), {"Origin": url, **headers})
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def read_page(text):
    return json.loads(text.split('id="data">')[1].split("</script>")[0])


def test_least_confident_first_and_no_more_than_asked(labels):
    page = Review(labels, labels.parent / "images", most=2)
    data = read_page(page.render(["a", "b"]))
    assert data["order"] == [103, 102] and len(data["coco"]["annotations"]) == len(data["coco"]["images"]) == 2
    assert data["urls"] == {"13": "a", "12": "b"}
    page.write(labels.parent / "sub" / "page.html")
    data = read_page((labels.parent / "sub" / "page.html").read_text())
    assert len(data["coco"]["annotations"]) == 3 and not data["served"]
    assert all((labels.parent / "sub" / url).is_file() for url in data["urls"].values())


def test_what_is_saved_changes_nothing_else(labels, serve):
    before = json.loads(labels.read_text())
    keypoints = [1.5, 2, 2] + [0] * 12
    status, message = post(serve, json.dumps({"102": {"keypoints": keypoints, "review": "accepted"}}))
    assert (status, message) == (200, "1 objects saved to labels.json")
    after = json.loads(labels.read_text())
    before["annotations"][0] |= {"keypoints": keypoints, "review": "accepted", "num_keypoints": 1}
    assert after == before
    assert post(serve, json.dumps({"102": {"review": ""}}))[0] == 200
    assert "review" not in json.loads(labels.read_text())["annotations"][0]
    assert '"keypoints":[1.5,2,2' in urllib.request.urlopen(serve).read().decode()  # also when it is opened again


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ("no json", 400, "Expecting value"),
        ("[]", 400, "not an object of changes"),
        ('{"99": {}}', 400, "no annotation '99'"),
        ('{"102": {"keypoints": [1, 2, 2]}}', 400, "keypoints must be 15 numbers"),
        ('{"102": {"keypoints": ' + str([float(7)] * 15) + "}}", 400, "visibility must be 0, 1 or 2"),
        ('{"102": {"found": [NaN' + ", 1" * 14 + "]}}", 400, "found must be 15 numbers"),
        ('{"102": {"review": "maybe"}}', 400, "review must be one of accepted, rejected"),
        ('{"102": {"file_name": "x"}}', 400, "not a change of keypoints"),
        ('{"103": {"review": "accepted"}, "102": 5}', 400, "not a change"),
    ],
)
def test_what_the_page_does_not_send_is_refused(labels, serve, body, status, message):
    before = labels.read_bytes()
    found, text = post(serve, body)
    assert found == status and message in text and labels.read_bytes() == before


def test_only_the_page_itself_may_save(labels, serve):
    before, change = labels.read_bytes(), json.dumps({"102": {"review": "accepted"}})
    assert post(serve, change, Origin="http://evil.example")[0] == 403
    assert post(serve, change, Origin="")[0] == 403
    assert post(serve, change, Host="evil.example", Origin="http://evil.example")[0] == 403
    request = urllib.request.Request(f"{serve}/labels.json", b"{}", {"Origin": serve})
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(request)
    for path in ("image/3", "labels.json", "image/../labels.json"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{serve}/{path}")
    assert urllib.request.urlopen(f"{serve}/image/0").read()[:4] == b"\x89PNG" and labels.read_bytes() == before


def test_the_command_writes_the_page(labels, capsys):
    output = labels.parent / "page.html"
    command = ("script/review_labels.py", labels, "--images", labels.parent / "images", "--output")
    assert call(*command, output) == 0 and output.is_file() and "(3 images)" in capsys.readouterr().out
    assert call(*command, "page.txt") == 2 and "must end in .html" in capsys.readouterr().err


@pytest.fixture
def open_page(browser):  # noqa: F811
    contexts = []

    def open_page(address):
        contexts.append(browser.new_context(viewport=LAPTOP))
        page = contexts[-1].new_page()
        page.set_default_timeout(60_000)
        page.goto(address)
        page.wait_for_function("document.querySelector('#image').naturalWidth > 0")
        return page

    yield open_page
    for context in contexts:
        context.close()


def selected(page):
    return page.locator("#rows tr[aria-selected=true] td").all_inner_texts()


@pytest.mark.browser
def test_points_are_dragged_and_objects_judged(open_page, serve, labels):
    page = open_page(serve)
    assert selected(page) == ["0.10", "3.png", "bird", ""]
    assert page.locator(".point").count() == 5 and page.locator(".point.hidden").count() == 1
    frame = page.locator("#frame").bounding_box()
    scale = frame["width"] / 80
    before = json.loads(labels.read_text())["annotations"][1]["keypoints"][3:5]
    mark = page.locator('.point[data-point="1"]').bounding_box()
    x, y = mark["x"] + mark["width"] / 2, mark["y"] + mark["height"] / 2
    assert (x - frame["x"]) / scale - 0.5 == pytest.approx(before[0], abs=0.3)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 10 * scale, y - 5 * scale, steps=3)
    page.mouse.up()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowDown")
    page.locator('.point[data-point="0"]').focus()
    page.keyboard.press("v")
    assert page.locator(".point.hidden").count() == 0
    page.keyboard.press("a")
    assert selected(page)[1] == "2.png"
    page.keyboard.press("r")
    assert selected(page)[1] == "4.png" and "2 changed and not saved" in page.locator("#summary").inner_text()
    page.keyboard.press("Control+s")
    page.get_by_text("2 objects saved to labels.json").wait_for()
    first, second, third = json.loads(labels.read_text())["annotations"]
    assert (first["review"], second["review"], third.get("review")) == ("rejected", "accepted", None)
    np_before = [before[0] + 11, before[1] + 5]
    assert second["keypoints"][3:6] == [pytest.approx(np_before[0], abs=0.3), pytest.approx(np_before[1], abs=0.3), 2]
    assert second["found"][3:6] == [*second["keypoints"][3:5], 1] and second["keypoints"][2] == 2
    assert second["num_keypoints"] == 5 and read_labels(labels, labels.parent / "images").objects
    page.keyboard.press("ArrowUp")
    page.keyboard.press("u")
    page.locator("#filter").select_option("accepted")
    assert page.locator("#rows tr").count() == 1 and selected(page)[1] == "3.png"


@pytest.mark.browser
def test_a_page_without_a_server_gives_a_download(open_page, labels, tmp_path):
    Review(labels, labels.parent / "images").write(tmp_path / "page.html")
    page = open_page(f"file://{tmp_path}/page.html")
    page.keyboard.press("a")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save").click()
    download.value.save_as(tmp_path / "reviewed.json")
    before, after = (json.loads(path.read_text()) for path in (labels, tmp_path / "reviewed.json"))
    before["annotations"][1] |= {"review": "accepted", "num_keypoints": 4}
    assert download.value.suggested_filename == "labels.json" and after == before
    assert "all saved" in page.locator("#summary").inner_text() and len(NAMES) == 5


@pytest.mark.browser
def test_transferred_labels_fit_the_screen(open_page, tmp_path):
    from mini.render.labelled import write_labelled
    from sd4match import Matcher, Transfer

    write_labelled(tmp_path / "labelled", ("horse",), 2)
    write_labelled(tmp_path / "others", ("horse",), 4, first=2)
    matcher = Matcher.from_pretrained("mini", device="cpu")
    found = to_coco(
        Transfer(matcher, tmp_path / "labelled", combine="vote", crop=False)(tmp_path / "others" / "images")
    )
    write(tmp_path / "labels.json", found)
    Review(tmp_path / "labels.json", tmp_path / "others" / "images").write(tmp_path / "page.html")
    page = open_page(f"file://{tmp_path}/page.html")
    page.keyboard.press("a")
    page.locator(".point").nth(1).focus()
    take_picture(page, "review.png")
    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    assert page.locator("#rows tr").count() == 4 and page.locator(".point").count() > 5
