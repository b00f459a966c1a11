"""What stands before every request: which hosts, origins and tokens are let in, and how much may be sent.

- Against rebinding: the ``Host`` must be a name of this server. An address in digits cannot be rebound; of
  names only ``localhost`` and those that were given are known.
- Against other pages in the same browser: where a browser says where a request comes from (``Origin``,
  ``Sec-Fetch-Site``), it must come from here. Following a link to the page is allowed.
- With a token: it comes as ``Authorization: Bearer TOKEN``, as the password of Basic authentication, or once
  as ``?token=TOKEN``, which becomes a cookie.
- Gradio's own routes would fetch addresses, and read files of this machine, that a client writes in place of
  an uploaded file's path; such requests are refused here, and only routes that the page uses are open.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode

from controlkit.ui.errors import Refused, as_plain
from controlkit.ui.places import uploaded

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

MAX_BODY = 64_000_000
"""Most bytes of a request."""

COOKIE = "controlkit-token"

_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"content-security-policy", _POLICY.encode()),
]
_GRADIO = (
    "queue/join",
    "queue/data",
    "upload",
    "upload_progress",
    "heartbeat/",
    "file=",
    "cancel",
    "reset",
    "component_server",
    "startup-events",
    "app_id",
    "dev/",
)


@dataclass(frozen=True)
class Door:
    """Who is let in.

    Args:
        host: The address that the server listens on.
        token: What clients must show; empty: nothing.
        names: Further names that the server is reached by.
        origins: Pages elsewhere that may use it, such as ``https://example.org``.
    """

    host: str = "127.0.0.1"
    token: str = ""
    names: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()

    def check_host(self, host: str) -> None:
        """Refuse a request to another name.

        Raises:
            Refused: 403.
        """
        name = _name_of(host)
        known = {"localhost", "127.0.0.1", "::1", self.host.lower(), *(name.lower() for name in self.names)}
        if name in known or (not is_loopback(self.host) and _address(name)):
            return
        raise Refused(
            "Host",
            found=repr(host)[:80],
            expected="a name of this server",
            fix="Open it as 127.0.0.1, or name it with --name.",
            code="CK-S16",
            status=403,
        )

    def check_origin(self, headers: dict[str, str], method: str) -> None:
        """Refuse a request that a browser makes for another page.

        Raises:
            Refused: 403.
        """
        origin = headers.get("origin")
        same = origin is None or origin in self.origins
        if origin is not None and "://" in origin:
            same = same or origin.split("://", 1)[1].lower() == headers.get("host", "").lower()
        linked = method == "GET" and headers.get("sec-fetch-mode") == "navigate"
        if headers.get("sec-fetch-site") in ("cross-site", "same-site") and not linked:
            same = same and origin in self.origins
        if not same:
            raise Refused(
                "Origin",
                found=repr(origin or "another page")[:80],
                expected="a request from this server's own page",
                fix="Allow that page with --origin.",
                code="CK-S16",
                status=403,
            )

    def check_token(self, headers: dict[str, str]) -> None:
        """Refuse a request without the token.

        Raises:
            Refused: 401.
        """
        if self.token and not any(_same(shown, self.token) for shown in _shown(headers)):
            raise Refused(
                "token", found="none that is right", expected="the token", status=401, code="CK-S16"
            )


class Guard:
    """The door in front of an application (ASGI).

    Args:
        app: What is behind it.
        door: Who is let in.
    """

    def __init__(self, app: Any, door: Door) -> None:
        self._app, self._door = app, door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # nothing here speaks websocket
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]
        }
        try:
            self._door.check_host(headers.get("host", ""))
            self._door.check_origin(headers, scope["method"])
            if location := self._entered(scope):
                await _enter(send, location, self._door.token)
                return
            self._door.check_token(headers)
            _check_size(headers)
            receive = await _checked(scope, headers, receive)
        except Refused as error:
            await answer(send, error.status, as_plain(error))
            return
        await self._app(scope, receive, _with_headers(send))

    def _entered(self, scope: Scope) -> str:
        """Where to go on, after a link with the right token; empty for other requests."""
        if not self._door.token or scope["method"] != "GET" or scope["path"] != "/":
            return ""
        query = parse_qsl(scope.get("query_string", b"").decode("latin-1"))
        if not any(name == "token" and _same(value, self._door.token) for name, value in query):
            return ""
        rest = urlencode([(name, value) for name, value in query if name != "token"])
        return f"/?{rest}" if rest else "/"


async def _checked(scope: Scope, headers: dict[str, str], receive: Receive) -> Receive:
    path = unquote(scope["path"])
    if "/gradio_api/" in path:
        route = path.split("/gradio_api/", 1)[1]
        if not route.startswith(_GRADIO) or "://" in route or "=http" in route.lower() or "\\" in route:
            raise Refused("path", found=repr(path)[:80], expected="a route of the page", status=404)
        if scope["method"] == "POST" and not route.startswith("upload"):
            body = await read_body(receive)  # whatever its type is said to be, which is easily said twice
            _refuse_paths(body, parts=route.startswith("component_server"))
            return _again(body, receive)
    return _counted(receive)


def _check_size(headers: dict[str, str]) -> None:
    length = headers.get("content-length", "0")
    if not length.isdigit() or int(length[:20]) > MAX_BODY:
        raise too_big(f"{length[:20]} bytes")


def too_big(found: str) -> Refused:
    """The refusal of a request of too many bytes."""
    return Refused("body", found=found, expected=f"at most {MAX_BODY:,} bytes", status=413, code="CK-S13")


async def read_body(receive: Receive) -> bytes:
    """The whole body.

    Raises:
        Refused: 413 where it is too long, 400 where the client went away.
    """
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused("body", found="a client that went away", expected="the whole body")
        part = message.get("body", b"")
        size += len(part)
        if size > MAX_BODY:
            raise too_big("more")
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def _refuse_paths(body: bytes, parts: bool) -> None:
    """Refuse Gradio's messages in which a file is none that was uploaded: Gradio would read or fetch it.

    Args:
        body: The message.
        parts: Whether it may also be one in parts, which holds files and names none.

    Raises:
        Refused: 400.
    """
    try:
        waiting = [json.loads(body or b"null")]
    except (ValueError, RecursionError):
        if parts:
            return
        raise Refused("body", found="no JSON", expected="JSON", code="CK-S13") from None
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            path = value.get("path")
            if path is not None and not uploaded(path):
                found = "an address" if isinstance(path, str) and "://" in path else "a path of its own"
                raise Refused(
                    "path", found=found, expected="an uploaded file", code="CK-S15", fix="Upload it."
                )
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _again(body: bytes, receive: Receive) -> Receive:
    """A body that was read, once more; afterwards what comes next."""
    given = False

    async def replay() -> MutableMapping[str, Any]:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _counted(receive: Receive) -> Receive:
    """The body as it comes, ended where it gets too long."""
    size = 0

    async def count() -> MutableMapping[str, Any]:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        return {"type": "http.disconnect"} if size > MAX_BODY else message

    return count


def _with_headers(send: Send) -> Send:
    async def add(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            dropped = {name for name, _ in _HEADERS}
            kept = [pair for pair in message.get("headers", []) if pair[0].lower() not in dropped]
            message = {**message, "headers": [*kept, *_HEADERS]}
        await send(message)

    return add


async def answer(send: Send, status: int, values: dict[str, Any]) -> None:
    """A JSON answer."""
    body = json.dumps(values).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *_HEADERS,
    ]
    if status == 401:
        headers.append((b"www-authenticate", b'Basic realm="controlkit: any name, the token as password"'))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _enter(send: Send, location: str, token: str) -> None:
    cookie = SimpleCookie()
    cookie[COOKIE] = base64.urlsafe_b64encode(token.encode()).decode()
    for name, value in (("httponly", "yes"), ("samesite", "Strict"), ("path", "/")):
        cookie[COOKIE][name] = value
    headers = [
        (b"location", location.encode("latin-1", "replace")),
        (b"set-cookie", cookie[COOKIE].OutputString().encode("latin-1")),
        (b"content-length", b"0"),
        *_HEADERS,
    ]
    await send({"type": "http.response.start", "status": 303, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def _shown(headers: dict[str, str]) -> list[str]:
    """The tokens that a request shows."""
    shown: list[str] = []
    kind, _, value = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        shown.append(value.strip())
    if kind.lower() == "basic":
        shown.append(_decoded(value).partition(":")[2])
    try:
        cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        cookie = None
    if cookie is not None:
        shown.append(_decoded(cookie.value))
    return shown


def _decoded(text: str) -> str:
    try:
        return base64.b64decode(text.strip().replace("-", "+").replace("_", "/"), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return ""


def _same(shown: str, token: str) -> bool:
    return hmac.compare_digest(shown.encode("utf-8", "replace"), token.encode())


def _name_of(host: str) -> str:
    """The name in ``name:port``, in lower case."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host


def _address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    return host == "localhost" or (_address(host) and ipaddress.ip_address(host).is_loopback)
