"""Who may ask the app for what. Gradio alone answers any web page that a browser has open, and serves and takes files.

The page is reached under a name of this machine only, and from itself only: another page's script could else use it
through the user's browser. Of gradio's routes only those exist that the page needs: none that names a file. Messages
bring words and numbers: of a nested value in the place of any widget's, gradio opens the file that it names.
"""

from __future__ import annotations

import ipaddress
import json
import re
import socket

ROUTES = re.compile(
    r"/|/theme\.css|/config|/favicon\.ico|/(assets|static)/[\w./@-]+"
    r"|/gradio_api/(run/predict|queue/(join|data)|reset|cancel|heartbeat/\w+|startup-events)"
)


def is_own_name(host: str, bound: str) -> bool:
    """Whether a Host header names this machine, which listens on `bound`: no other site's name leads to an address."""
    name = re.sub(r":\d+$", "", host).strip("[]").lower()
    if name in ("localhost", bound.lower(), socket.gethostname().lower(), socket.getfqdn().lower()):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_plain(body: bytes) -> bool:
    """Whether a message's values are words and numbers, or lists or dicts of them."""
    try:
        message = json.loads(body)
    except (ValueError, RecursionError):
        return False
    if not isinstance(message, dict):
        return False
    nested = [list(value.values()) if isinstance(value, dict) else value for value in message.values()]
    values = [item for value in nested for item in (value if isinstance(value, list) else [value])]
    return not any(isinstance(value, list | dict) for value in values)


class Guard:
    """An ASGI application in front of another, which listens on `host`; messages have at most `max_body` bytes."""

    def __init__(self, app, host: str, max_body: int) -> None:
        self.app, self.host, self.max_body = app, host, max_body

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        status = self._judge(scope)
        if status == 200 and scope["method"] == "POST":
            body = await _read(receive)
            status, receive = (200, _replay(body, receive)) if is_plain(body) else (400, receive)
        if status == 200:
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body"})
        else:
            await send({"type": "websocket.close"})

    def _judge(self, scope) -> int:
        """200, or the status of a refusal, without reading the body."""
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        if not is_own_name(host, self.host):
            return 421
        if origin is not None and origin.partition("://")[2] != host:
            return 403
        if scope["type"] != "http" or not ROUTES.fullmatch(scope["path"]):
            return 404
        if scope["method"] in ("GET", "HEAD"):
            return 200
        length = headers.get(b"content-length", "")
        if scope["method"] != "POST":
            return 405
        return 411 if not length.isdigit() else 413 if int(length) > self.max_body else 200


async def _read(receive) -> bytes:
    """The whole body of a request; the server sees to it that it is as long as it said."""
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


def _replay(body: bytes, receive):
    """A `receive` that gives a body that has been read, and then what comes after it."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay():
        return messages.pop() if messages else await receive()

    return replay
