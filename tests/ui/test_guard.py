"""The door: hosts, origins, tokens and sizes; tables of who is let in."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

import controlkit as ck
from controlkit.ui import guard
from controlkit.ui.guard import Door, Guard
from controlkit.ui.serving import Settings

TOKEN = "a-token-of-some-length"


@pytest.fixture
def app() -> Any:
    made = FastAPI()

    @made.get("/")
    def root() -> str:
        return "the page"

    @made.api_route("/{path:path}", methods=["GET", "POST", "DELETE"])
    async def echo(path: str, request: Request) -> int:
        return len(await request.body())

    return made


def client(app: Any, door: Door, host: str = "127.0.0.1:7860") -> Any:
    guarded: Any = Guard(app, door)
    return TestClient(guarded, base_url=f"http://{host}", follow_redirects=False)


@pytest.mark.parametrize(
    ("door", "host", "status"),
    [
        (Door(), "127.0.0.1:7860", 200),
        (Door(), "localhost:7860", 200),
        (Door(), "LOCALHOST", 200),
        (Door(), "[::1]:7860", 200),
        (Door(), "evil.example", 403),
        (Door(), "127.0.0.1.evil.example", 403),
        (Door(), "localhost.evil.example:7860", 403),
        (Door(), "10.0.0.7:7860", 403),
        (Door(), "", 403),
        (Door("0.0.0.0"), "10.0.0.7:7860", 200),
        (Door("0.0.0.0"), "evil.example:7860", 403),
        (Door("0.0.0.0", names=("studio.lan",)), "Studio.LAN:7860", 200),
        (Door("studio.lan"), "studio.lan:7860", 200),
    ],
)
def test_only_names_of_this_server(app: Any, door: Door, host: str, status: int) -> None:
    assert client(app, door).get("/", headers={"host": host}).status_code == status


@pytest.mark.parametrize(
    ("headers", "method", "status"),
    [
        ({}, "POST", 200),
        ({"origin": "http://127.0.0.1:7860"}, "POST", 200),
        ({"origin": "http://127.0.0.1:9999"}, "POST", 403),
        ({"origin": "http://evil.example"}, "POST", 403),
        ({"origin": "http://evil.example"}, "DELETE", 403),
        ({"origin": "http://evil.example"}, "GET", 403),
        ({"origin": "null"}, "POST", 403),
        ({"origin": "file://"}, "POST", 403),
        ({"origin": "https://friend.example"}, "POST", 200),
        ({"sec-fetch-site": "cross-site"}, "GET", 403),
        ({"sec-fetch-site": "same-site"}, "POST", 403),
        ({"sec-fetch-site": "same-origin"}, "POST", 200),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, "GET", 200),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, "POST", 403),
    ],
)
def test_only_this_servers_own_page(app: Any, headers: dict[str, str], method: str, status: int) -> None:
    door = Door(origins=("https://friend.example",))
    answer = client(app, door).request(method, "/x", headers=headers)
    assert answer.status_code == status
    assert answer.headers["x-content-type-options"] == "nosniff"
    if status == 403:
        assert answer.json()["code"] == "CK-S16"


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": f"Bearer {TOKEN}"}, 200),
        ({"authorization": f"Bearer {TOKEN}x"}, 401),
        ({"authorization": "Bearer "}, 401),
        ({"authorization": basic(f"anyone:{TOKEN}")}, 200),
        ({"authorization": basic("anyone:wrong")}, 401),
        ({"authorization": "Basic %%%"}, 401),
        ({"cookie": f"{guard.COOKIE}={base64.urlsafe_b64encode(TOKEN.encode()).decode()}"}, 200),
        ({"cookie": f"{guard.COOKIE}=wrong; a=b"}, 401),
        ({"cookie": "\x7f=;;;=,"}, 401),
    ],
)
def test_only_with_the_token(app: Any, headers: dict[str, str], status: int) -> None:
    assert client(app, Door(token=TOKEN)).get("/x", headers=headers).status_code == status


def test_a_link_with_the_token_becomes_a_cookie(app: Any) -> None:
    visitor = client(app, Door(token=TOKEN))
    assert visitor.get("/?token=wrong").status_code == 401
    entered = visitor.get(f"/?a=1&token={TOKEN}")
    assert (entered.status_code, entered.headers["location"]) == (303, "/?a=1")
    assert "HttpOnly" in entered.headers["set-cookie"]
    assert TOKEN not in entered.headers["set-cookie"]
    assert visitor.get("/").json() == "the page"


def test_long_requests_are_refused(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MAX_BODY", 1000)
    visitor = client(app, Door())
    assert visitor.post("/x", content=b"x" * 1000).json() == 1000
    assert visitor.post("/x", content=b"x" * 1001).status_code == 413

    def parts() -> Iterator[bytes]:
        yield from [b"x" * 600] * 3

    join = visitor.post(
        "/gradio_api/queue/join", content=parts(), headers={"content-type": "application/json"}
    )
    assert join.status_code == 413


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("queue/join", {"data": [{"path": "UPLOADS/x.png"}, {"path": None}]}, 200),
        ("queue/join", {"data": [{"path": "UPLOADS/../x.png"}]}, 400),
        ("queue/join", {"data": [{"path": "UPLOADS-2/x.png"}]}, 400),
        ("queue/join", {"data": [{"path": "uploaded/x.png"}]}, 400),
        ("queue/join", {"data": [{"path": "/etc/passwd"}]}, 400),
        ("queue/join", {"data": [{"layers": [{"path": ["/etc/passwd"]}]}]}, 400),
        ("queue/join", {"data": [{"path": "UPLOADS/x\0.png"}]}, 400),
        ("component_server", {"data": {"path": "/etc/passwd"}}, 400),
        ("queue/join", {"data": [[{"a": {"path": "http://10.0.0.1/x"}}]]}, 400),
        ("queue/join", {"data": [{"path": "file:///etc/passwd", "url": None}]}, 400),
        ("file=http://10.0.0.1/x", None, 404),
        ("file=C:\\x", None, 404),
        ("proxy=https://x", None, 404),
        ("run/predict", {}, 404),
        ("info", None, 404),
        ("file=/tmp/x", None, 200),
    ],
)
def test_gradios_own_routes(
    app: Any, path: str, body: Any, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    visitor = client(app, Door())
    if body is None:
        assert visitor.get(f"/gradio_api/{path}").status_code == status
        return
    content = json.dumps(body).replace("UPLOADS", str(tmp_path))
    for kind in ("application/json", "application/JSON", "text/plain", "multipart/form-data", None):
        headers = {"content-type": kind} if kind else {}
        answer = visitor.post(f"/gradio_api/{path}", content=content, headers=headers)
        assert answer.status_code == status, kind


def test_gradios_drawings_come_in_parts(app: Any) -> None:
    sent = client(app, Door()).post("/gradio_api/component_server", files={"a": b"\x89PNG"})
    assert sent.status_code == 200
    assert client(app, Door()).post("/gradio_api/queue/join", content=b"\x89PNG").status_code == 400


@pytest.mark.parametrize(
    ("door", "says"),
    [
        (Door("0.0.0.0"), "CONTROLKIT_TOKEN"),
        (Door("::"), "CONTROLKIT_TOKEN"),
        (Door("studio.lan"), "CONTROLKIT_TOKEN"),
        (Door("127.0.0.1", "short"), "at least 16"),
    ],
)
def test_no_address_that_others_reach_without_a_token(tmp_path: Path, door: Door, says: str) -> None:
    with pytest.raises(ck.ParameterError, match=says):
        Settings(tmp_path, door=door).check()


@pytest.mark.parametrize("door", [Door(), Door("::1"), Door("localhost"), Door("0.0.0.0", TOKEN)])
def test_addresses_that_may_be_listened_on(tmp_path: Path, door: Door) -> None:
    Settings(tmp_path, door=door).check()
