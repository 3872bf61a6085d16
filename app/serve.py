"""A page over HTTP, for a browser on another machine. Nothing but the page and its pictures is served.

A page that can be saved takes what was changed from itself alone: another page's script could else send it through the
user's browser.
"""

from __future__ import annotations

import json
import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from mimetypes import guess_type
from pathlib import Path

from app.guard import is_own_name
from app.static_page import StaticPage

MAX_BODY = 64 << 20  # bytes of what may be sent to be saved


def build_server(page: StaticPage, bound: str, port: int) -> ThreadingHTTPServer:
    """A server that is not running yet; port 0 takes a free one. What the page's `save` takes may be sent to /save."""
    urls = [f"image/{number}" for number in range(len(page.images))]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not is_own_name(self.headers.get("Host", ""), bound):
                self.send_error(421)
                return
            number = re.fullmatch(r"/image/(\d{1,9})", self.path)
            if self.path == "/":
                self._send(page.render(urls).encode(), "text/html; charset=utf-8")
            elif number and int(number[1]) < len(page.images):
                self._send_image(Path(page.images[int(number[1])]))
            else:
                self.send_error(404)

        def do_POST(self) -> None:
            host, origin = self.headers.get("Host", ""), self.headers.get("Origin", "")
            length = self.headers.get("Content-Length", "")
            if not is_own_name(host, bound) or origin.partition("://")[2] != host:
                self.send_error(403)
            elif self.path != "/save" or not hasattr(page, "save"):
                self.send_error(404)
            elif not length.isdigit() or int(length) > MAX_BODY:
                self.send_error(413 if length.isdigit() else 411)
            else:
                try:
                    message = page.save(json.loads(self.rfile.read(int(length))))
                except (ValueError, RecursionError, OSError) as error:
                    self._send(str(error).encode(), "text/plain; charset=utf-8", 400)
                else:
                    self._send(message.encode(), "text/plain; charset=utf-8")

        def _send_image(self, path: Path) -> None:
            try:
                content = path.read_bytes()
            except OSError:
                self.send_error(404, "the picture has gone")
                return
            self._send(content, guess_type(path)[0] or "application/octet-stream")

        def _send(self, content: bytes, kind: str, status: int = 200) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            """Requests are not worth a line each."""

    return ThreadingHTTPServer((bound, port), Handler)


def serve_page(page: StaticPage, host: str, port: int) -> None:
    """Until Ctrl-C."""
    with build_server(page, host, port) as server:
        print(f"{page.name}: open http://{host}:{server.server_port} (Ctrl-C stops)", file=sys.stderr)
        server.serve_forever()
