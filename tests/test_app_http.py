"""The running app over HTTP, as an attacker speaks to it: files of the machine, other web pages, bombs, leftovers."""

import base64
import http.client
import io
import json
import os
import secrets
import signal
import threading

import pytest
from PIL import Image

from tests.running import running_app

pytest.importorskip("gradio", reason="gradio is not installed: pip install -r requirements-app.txt")
PATIENCE = 60  # seconds for an answer


class Client:
    """One browser, but for the browser."""

    def __init__(self, port):
        self.port, self.session = port, secrets.token_hex(6)

    def ask(self, method, path, body=None, **headers):
        """(status, text) of one request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json", **headers})
            response = connection.getresponse()
            return response.status, response.read().decode(errors="replace")
        finally:
            connection.close()

    @property
    def dependencies(self):
        return json.loads(self.ask("GET", "/config")[1])["dependencies"]

    def trigger(self, event, event_data=None, data=()):
        """What the page would get after an event of a component, as text."""
        number = next(d["id"] for d in self.dependencies if any(name == event for _, name in d["targets"]))
        return self.call(number, data, event_data)

    def call(self, number, data=(), event_data=None):
        body = {"fn_index": number, "data": list(data), "event_data": event_data, "session_hash": self.session}
        dependency = next(d for d in self.dependencies if d["id"] == number)
        if not dependency["queue"]:
            return self.ask("POST", "/gradio_api/run/predict", json.dumps(body))[1]
        status, answer = self.ask("POST", "/gradio_api/queue/join", json.dumps(body))
        if status != 200:
            return answer
        return self.ask("GET", f"/gradio_api/queue/data?session_hash={self.session}")[1]

    def show(self, side, content, name="x.png"):
        return self.trigger("photo", {"side": side, "name": name, "data": base64.b64encode(content).decode()})


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    folder = tmp_path_factory.mktemp("app")
    with running_app(folder, "--max_upload_mb", "1") as (server, port):
        yield server, port
        assert server.poll() is None


@pytest.fixture
def client(app):
    return Client(app[1])


def png(size=(32, 24), mode="RGB"):
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, "png")
    return buffer.getvalue()


def test_a_photo_comes_and_goes_within_messages(client):
    assert '"width": 32' in client.show("source", png()).replace('":', '": ').replace(":  ", ": ")
    assert "data:image/png;base64," in client.show("target", png())


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Paths of a picture, of nothing, of a FIFO, and of a system file; none may be told from another."""
    folder = tmp_path_factory.mktemp("private")
    (folder / "there.png").write_bytes(png())
    os.mkfifo(folder / "pipe0.png")
    return [str(folder / name) for name in ("there.png", "not_a.png", "pipe0.png")] + ["/etc/passwd"]


@pytest.mark.parametrize("kind", ["word", "dict", "marked", "image", "nested"])
def test_no_event_takes_a_path(client, places, kind):
    """Every event of the page, with a path in every form that gradio knows, in place of every value."""
    forms = {
        "word": lambda path: path,
        "dict": lambda path: {"path": path},
        "marked": lambda path: {"path": path, "meta": {"_type": "gradio.FileData"}},
        "image": lambda path: {"side": "source", "name": path, "data": path},
        "nested": lambda path: {"side": "source", "name": "x", "data": {"path": path, "url": f"file://{path}"}},
    }
    for dependency in client.dependencies:
        example = dependency["targets"][0][1] == "click"  # answers with its own pictures
        lengths = set()
        for path in places:
            value = forms[kind](path)
            answer = Client(client.port).call(dependency["id"], [value] * len(dependency["inputs"]), value)
            assert example or "data:image" not in answer
            lengths.add(answer.count('"pictures"'))
        assert len(lengths) == 1


def test_nothing_tells_whether_a_path_exists(client, places):
    for form in (lambda path: {"path": path}, lambda path: {"side": "target", "name": "x", "data": path}):
        answers = [client.trigger("photo", form(path)) for path in places]
        messages = {json.dumps(find_messages(answer)) for answer in answers}
        assert len(messages) == 1 and not any("private" in message for message in messages)
    assert "did not arrive" in messages.pop()


def find_messages(stream):
    """All "message" entries of an answer, or of a stream of events, at any depth."""
    found = []

    def visit(node):
        if isinstance(node, dict):
            found.extend(value for key, value in node.items() if key == "message")
            node = list(node.values())
        if isinstance(node, list):
            for item in node:
                visit(item)

    for line in stream.splitlines():
        if line.removeprefix("data: ").startswith("{"):
            visit(json.loads(line.removeprefix("data: ")))
    return found


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/file=/etc/passwd",
        "/gradio_api/file/etc/passwd",
        "/gradio_api/proxy=http://127.0.0.1/",
        "/gradio_api/info",
        "/gradio_api/openapi.json",
        "/gradio_api/upload_progress?upload_id=1",
        "/monitoring",
        "/docs",
        "/gradio_api/stream/x/1/1/playlist.m3u8",
    ],
)
def test_routes_that_the_page_does_not_need_are_not_there(client, path):
    assert client.ask("GET", path)[0] == 404


@pytest.mark.parametrize("path", ["upload", "component_server", "call/predict", "process_recording"])
def test_nothing_takes_files_or_calls_beside_the_queue(client, path):
    assert client.ask("POST", f"/gradio_api/{path}", "{}")[0] == 404


@pytest.mark.parametrize("path", ["/assets/../../../../../etc/passwd", "/static/..%2f..%2f..%2f..%2fetc/passwd"])
def test_no_way_out_of_the_pages_own_files(client, path):
    status, text = client.ask("GET", path)
    assert status >= 400 and "root:" not in text


def test_other_names_and_other_pages_are_refused(client):
    own = f"http://127.0.0.1:{client.port}"
    assert client.ask("GET", "/")[0] == client.ask("GET", "/", Origin=own)[0] == 200
    assert client.ask("GET", "/", Host=f"localhost:{client.port}")[0] == 200
    for host in ("evil.example", f"evil.example:{client.port}", "127.0.0.1.evil.example"):
        assert client.ask("GET", "/", Host=host)[0] == 421
        assert client.ask("GET", "/", Host=host, Origin=f"http://{host}")[0] == 421
    for origin in ("http://evil.example", "null", f"http://localhost:{client.port}", "http://127.0.0.1:1"):
        status, text = client.ask("POST", "/gradio_api/queue/join", "{}", Origin=origin)
        assert (status, text) == (403, "")


def test_large_messages_are_refused_before_they_are_read(client):
    assert client.ask("POST", "/gradio_api/queue/join", b"x" * 1_700_000)[0] == 413
    assert client.ask("POST", "/gradio_api/queue/join", iter([b"{}"]), **{"Transfer-Encoding": "chunked"})[0] == 411


def test_few_bytes_that_claim_many_pixels_cost_little(app, client):
    bomb = png((12200, 12200), "L")
    assert len(bomb) < 2**20
    before = peak_memory(app[0].pid)
    assert "megapixels" in client.show("source", bomb)
    assert peak_memory(app[0].pid) - before < 100


def test_the_largest_photo_that_is_taken_costs_little(app, client):
    large = png((6300, 6300), "RGBA")
    before = peak_memory(app[0].pid)
    assert "data:image" in client.show("source", large)
    assert peak_memory(app[0].pid) - before < 1000


def peak_memory(pid):
    """MB that a process has had at most."""
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024


@pytest.mark.parametrize(
    "event_data", [{"x": float("nan"), "y": 1}, {"x": "nan", "y": "1"}, {}, None, [1], {"x": 10**400, "y": 1}]
)
def test_a_point_that_is_no_place_is_not_kept(client, event_data):
    for side in ("source", "target"):
        client.show(side, png())
    answer = client.trigger("place", event_data)
    assert "A point is two numbers" in answer and '"points":[]' in answer.replace(" ", "")


def test_nothing_is_left_on_the_disk(tmp_path):
    with running_app(tmp_path) as (server, port):
        client = Client(port)
        client.show("source", png())
        threading.Thread(target=client.ask, args=["GET", "/gradio_api/heartbeat/x"], daemon=True).start()
        server.send_signal(signal.SIGTERM)
        server.wait(20)
        assert [path for path in (tmp_path / "tmp").rglob("*") if not path.is_dir()] == []
