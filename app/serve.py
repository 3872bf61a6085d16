"""A page of results over HTTP, for a browser on another machine. Nothing but the page and its pictures is served."""

from __future__ import annotations

import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from mimetypes import guess_type
from pathlib import Path

from app.guard import is_own_name
from app.viewer import Page


def build_server(page: Page, host: str, port: int) -> ThreadingHTTPServer:
    """A server that is not running yet; port 0 takes a free one."""
    text = page.render([f"image/{number}" for number in range(len(page.images))]).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not is_own_name(self.headers.get("Host", ""), host):
                self.send_error(421)
                return
            number = re.fullmatch(r"/image/(\d{1,9})", self.path)
            if self.path == "/":
                self._send(text, "text/html; charset=utf-8")
            elif number and int(number[1]) < len(page.images):
                self._send_image(Path(page.images[int(number[1])]))
            else:
                self.send_error(404)

        def _send_image(self, path: Path) -> None:
            try:
                content = path.read_bytes()
            except OSError:
                self.send_error(404, "the picture has gone")
                return
            self._send(content, guess_type(path)[0] or "application/octet-stream")

        def _send(self, content: bytes, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            """Requests are not worth a line each."""

    return ThreadingHTTPServer((host, port), Handler)


def serve_page(page: Page, host: str, port: int) -> None:
    """Until Ctrl-C."""
    with build_server(page, host, port) as server:
        print(f"{page.name}: open http://{host}:{server.server_port} (Ctrl-C stops)", file=sys.stderr)
        server.serve_forever()
