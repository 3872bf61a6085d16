"""Downloading from a local server, resuming, unpacking safely, checking."""

import http.server
import io
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest

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
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), RangeHandler) as server:
        server.files, server.requests, server.ranges, server.cut = {}, [], True, 0
        server.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()


def tar_bytes(folder, *more):
    """`folder` under its own name as tar.gz, with further (name, content or link target) members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as file:
        file.add(folder, folder.name)
        for name, content in more:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                file.addfile(info)
            else:
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


def parts_at(name, server):
    return p.choose_urls(p.PARTS[name], f"{server.url}/archive", f"{server.url}/pairs")


# Downloading


def test_download_and_resume(server, tmp_path):
    content = bytes(range(256)) * 400
    server.files["/a"] = content
    file = tmp_path / "new" / "a.bin"
    p.download(f"{server.url}/a", file)
    assert file.read_bytes() == content and server.requests == [("/a", None)]
    file.unlink()
    part = tmp_path / "new" / "a.bin.part"
    part.write_bytes(content[:1000])
    p.download(f"{server.url}/a", file)
    assert file.read_bytes() == content and not part.exists()
    assert server.requests[-1] == ("/a", "bytes=1000-")


def test_connection_lost_half_way(server, tmp_path, capsys):
    server.files["/a"] = content = bytes(range(250)) * 1000
    server.cut = 1
    p.download(f"{server.url}/a", tmp_path / "a", wait=0)
    assert (tmp_path / "a").read_bytes() == content
    assert server.requests[1] == ("/a", "bytes=125000-")
    assert "interrupted" in capsys.readouterr().out
    server.cut = 9
    with pytest.raises(OSError, match="closed after 218,750 of 250,000 bytes"):
        p.download(f"{server.url}/a", tmp_path / "b", wait=0)
    assert not (tmp_path / "b").exists() and (tmp_path / "b.part").stat().st_size == 218750


def test_server_without_ranges_starts_over(server, tmp_path):
    server.files["/a"], server.ranges = b"x" * 5000, False
    (tmp_path / "a.part").write_bytes(b"y" * 3000)
    p.download(f"{server.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"x" * 5000


@pytest.mark.parametrize("have", [b"x" * 5000, b"y" * 6000])
def test_part_that_is_whole_or_too_long(server, tmp_path, have):
    server.files["/a"] = b"x" * 5000
    (tmp_path / "a.part").write_bytes(have)
    p.download(f"{server.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"x" * 5000


def test_failed_download_says_how_to_go_on(server, tmp_path):
    with pytest.raises(p.PrepareError) as error:
        p.prepare("pfpascal", tmp_path / "pf-pascal", parts_at("pfpascal", server), {})
    text = str(error.value)
    assert "404" in text and "https://www.di.ens.fr/willow/research/proposalflow/" in text
    assert f"  {tmp_path / 'download' / 'PF-dataset-PASCAL.zip'}\n" in text
    assert len(server.requests) == 1


# Whole runs


def test_spair_from_server_twice(server, tmp_path, capsys):
    source = tiny_spair(tmp_path / "source")
    server.files["/archive"] = tar_bytes(source, ("SPair-71k/._Layout", b"x"), ("SPair-71k/README", b"hello"))
    root = tmp_path / "asset" / "SPair-71k"
    p.prepare("spair", root, parts_at("spair", server), SPAIR_COUNTS)
    names = {path.name for path in root.iterdir()}
    assert names == {"Layout", "PairAnnotation", "JPEGImages", "README", ".index"}
    assert "spair is complete: 6 trn, 2 val, 4 test, 6 images" in capsys.readouterr().out
    p.prepare("spair", root, parts_at("spair", server), SPAIR_COUNTS)
    assert "found Layout, PairAnnotation, JPEGImages in" in capsys.readouterr().out
    assert len(server.requests) == 1


def test_archive_put_there_by_hand(tmp_path, server):
    source = tiny_pfwillow(tmp_path / "source")
    root = tmp_path / "asset" / "pf-willow"
    archive = tmp_path / "asset" / "download" / "PF-dataset.zip"
    archive.parent.mkdir(parents=True)
    archive.write_bytes(zip_bytes(source, "PF-dataset/", extra=[("__MACOSX/PF-dataset/x", b"x")]))
    server.files["/pairs"] = (source / "test_pairs.csv").read_bytes()
    p.prepare("pfwillow", root, parts_at("pfwillow", server), {"test": 4})
    assert [path for path, _ in server.requests] == ["/pairs"]
    assert {path.name for path in root.iterdir()} == {"PF-dataset", "test_pairs.csv", ".index"}


def test_pfpascal_with_zipped_pairs_in_a_folder(server, tmp_path):
    source = tiny_pfpascal(tmp_path / "source")
    server.files["/archive"] = zip_bytes(source, "PF-dataset-PASCAL/")
    lists = tmp_path / "lists"
    for name in ("trn", "val", "test"):
        (lists / "inner").mkdir(parents=True, exist_ok=True)
        shutil.copy(source / f"{name}_pairs.csv", lists / "inner")
    server.files["/pairs"] = zip_bytes(lists, "inner/")
    root = tmp_path / "pf-pascal"
    counts = {"trn": 4, "val": 2, "test": 2}
    p.prepare("pfpascal", root, parts_at("pfpascal", server), counts)
    other = tmp_path / "other" / "pf-pascal"
    p.prepare("pfpascal", other, parts_at("pfpascal", server), counts, pairs=lists / "inner")
    assert (other / "val_pairs.csv").read_bytes() == (source / "val_pairs.csv").read_bytes()
    with pytest.raises(p.PrepareError, match="--pairs .*: trn_pairs.csv, val_pairs.csv, test_pairs.csv not found"):
        p.prepare("pfpascal", tmp_path / "third" / "x", parts_at("pfpascal", server), counts, pairs=tmp_path)


def test_what_is_there_is_kept(server, tmp_path, capsys):
    source = tiny_spair(tmp_path / "source")
    server.files["/archive"] = tar_bytes(source)
    root = tmp_path / "SPair-71k"
    (root / "JPEGImages").mkdir(parents=True)
    (root / ".unpack").mkdir()
    with pytest.raises(p.PrepareError, match="(?s)images are missing.*JPEGImages has 0 images, expected 6.*move the"):
        p.prepare("spair", root, parts_at("spair", server), SPAIR_COUNTS)
    assert f"kept {root / 'JPEGImages'}" in capsys.readouterr().out
    assert not (root / ".unpack").exists()
    shutil.rmtree(root / "JPEGImages")
    p.prepare("spair", root, parts_at("spair", server), SPAIR_COUNTS)
    assert len(server.requests) == 1


# Unpacking


@pytest.mark.parametrize(
    "member",
    [
        ("../escape", b"x"),
        ("/tmp/escape-absolute", b"x"),
        ("SPair-71k/link", "../../outside"),
        ("a/../../escape", b"x"),
    ],
)
def test_tar_members_that_escape_are_refused(server, tmp_path, member):
    server.files["/archive"] = tar_bytes(tiny_spair(tmp_path / "source"), member)
    root = tmp_path / "asset" / "SPair-71k"
    with pytest.raises(p.PrepareError, match="refused, .*member.* leaves the target folder"):
        p.prepare("spair", root, parts_at("spair", server), SPAIR_COUNTS)
    assert list(root.iterdir()) == [] and not list(tmp_path.rglob("escape*"))


@pytest.mark.parametrize("name", ["../escape", "/escape", "C:\\escape", "PF-dataset/..\\..\\escape"])
def test_zip_members_that_escape_are_refused(server, tmp_path, name):
    source = tiny_pfwillow(tmp_path / "source")
    server.files["/archive"] = zip_bytes(source, "PF-dataset/", extra=[(name, b"x")])
    root = tmp_path / "asset" / "pf-willow"
    with pytest.raises(p.PrepareError, match="refused, its member"):
        p.prepare("pfwillow", root, parts_at("pfwillow", server), {"test": 4})
    assert list(root.iterdir()) == []


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda b: b[: len(b) // 2], "is damaged .*Delete it and run again"),
        (lambda b: b"<!DOCTYPE html>", "is no tar or zip archive: it starts with b'<!DOCTYPE"),
    ],
)
def test_damaged_archives(server, tmp_path, spoil, message):
    server.files["/archive"] = spoil(tar_bytes(tiny_spair(tmp_path / "source")))
    root = tmp_path / "asset" / "SPair-71k"
    with pytest.raises(p.PrepareError, match=message):
        p.prepare("spair", root, parts_at("spair", server), SPAIR_COUNTS)
    assert list(root.iterdir()) == []


def test_another_archive(server, tmp_path):
    server.files["/archive"] = tar_bytes(tiny_pfwillow(tmp_path / "source"))
    with pytest.raises(p.PrepareError, match="does not hold Layout, PairAnnotation, JPEGImages in one folder"):
        p.prepare("spair", tmp_path / "SPair-71k", parts_at("spair", server), SPAIR_COUNTS)


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


def test_script_checks_and_fails_clearly(tmp_path):
    root = tiny_pfwillow(tmp_path)
    script = REPOSITORY / "script" / "prepare_data.sh"

    def run(*arguments):
        command = ["sh", str(script), *arguments]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHON": sys.executable},
            cwd=tmp_path,
        )

    done = run("pfwillow", "--root", "pf-willow", "--check")
    assert done.returncode == 1 and "split test has 4 pairs, expected 900" in done.stderr
    assert "sh script/prepare_data.sh pfwillow" in done.stderr and str(root.name) in done.stderr
    archive = tmp_path / "archive.zip"
    archive.write_bytes(zip_bytes(root, "PF-dataset/"))
    done = run("pfwillow", "--root", "new/pf-willow", "--url", archive.as_uri(), "--pairs", str(root))
    assert "installed PF-dataset in new/pf-willow" in done.stdout and done.returncode == 1
    assert (tmp_path / "new/pf-willow/test_pairs.csv").exists()
    assert run("spair", "--pairs", "x").returncode == 2
    assert run("spiar").returncode == 2
