"""A hub on this machine, for one repository: the real client talks to it, and it misbehaves to order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from time import sleep  # itself, as `serve` takes the client's pauses away
from typing import Any

import pytest

COMMIT = "c0ffee" + "0" * 34


class HubServer:
    """Serves a folder as the repository ``someone/thing``.

    Attributes:
        refuse: Statuses to answer, by a part of the path.
        cut: For a file, after how many bytes each answer breaks off; whole once these are used up.
        claimed: A wrong size for a file, in the list of files and in the answer's head.
        sha256: What the list says of a file's digest.
        replaced: Other bytes of a file.
        delay: Seconds before every part of an answer.
        stall: Seconds before an answer, by a part of the path.
        paths: What was asked for.
        served: Files, and from which byte on.
    """

    commit = COMMIT

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.refuse: dict[str, int] = {}
        self.cut: dict[str, list[int]] = {}
        self.claimed: dict[str, int] = {}
        self.sha256: dict[str, str] = {}
        self.replaced: dict[str, bytes] = {}
        self.delay = 0.0
        self.stall: dict[str, float] = {}
        self.paths: list[str] = []
        self.served: list[tuple[str, int]] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self, body=True)

            def do_HEAD(self) -> None:
                hub.answer(self, body=False)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *details: None  # clients that have gone away are the point
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        """Nobody listens any more."""
        self._server.shutdown()
        self._server.server_close()

    def environment(self, cache: Path) -> dict[str, str]:
        """For another process that is to use this hub."""
        return {
            "HF_ENDPOINT": self.address,
            "HF_HUB_CACHE": str(cache),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }

    def answer(self, request: BaseHTTPRequestHandler, *, body: bool) -> None:
        """One request."""
        path = request.path.partition("?")[0]
        self.paths.append(path)
        sleep(next((seconds for part, seconds in self.stall.items() if part in path), 0))
        status = next((code for part, code in self.refuse.items() if part in path), None)
        if status is None and "someone/thing" not in path:
            status = 404
        if status is not None:
            self._send(request, status, b"{}", {}, body)
        elif path.startswith("/api/models/"):
            self._send(request, 200, json.dumps(self._listing()).encode(), {}, body)
        else:
            self._file(request, path.split(f"/resolve/{COMMIT}/")[-1], body)

    def content(self, name: str) -> bytes:
        """What a file holds."""
        return self.replaced.get(name) or (self.folder / name).read_bytes()

    def _listing(self) -> dict[str, Any]:
        files = []
        for path in sorted(self.folder.rglob("*")):
            if path.is_file():
                name = path.relative_to(self.folder).as_posix()
                content = path.read_bytes()
                size = self.claimed.get(name, len(content))
                sha256 = self.sha256.get(name, hashlib.sha256(content).hexdigest())
                lfs = {"sha256": sha256, "size": size, "pointerSize": 130}
                files.append({"rfilename": name, "size": size, "blobId": "0" * 40, "lfs": lfs})
        return {"id": "someone/thing", "sha": COMMIT, "siblings": files, "private": False, "tags": [],
                "downloads": 0, "likes": 0}  # fmt: skip

    def _file(self, request: BaseHTTPRequestHandler, name: str, body: bool) -> None:
        content = self.content(name)
        etag = hashlib.sha256((self.folder / name).read_bytes()).hexdigest()
        size = self.claimed.get(name, len(content))
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes",
                   "X-Linked-Size": str(size), "X-Linked-ETag": f'"{etag}"'}  # fmt: skip
        start = 0
        if asked := request.headers.get("Range"):
            start = int(asked.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if body:
            self.served.append((name, start))
        cuts = self.cut.get(name, [])
        most = cuts.pop(0) if cuts and body else None
        self._send(request, 206 if asked else 200, content[start:], headers, body, most)

    def _send(
        self,
        request: BaseHTTPRequestHandler,
        status: int,
        content: bytes,
        headers: dict[str, str],
        body: bool,
        most: int | None = None,
    ) -> None:
        request.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            request.send_header(key, value)
        request.send_header("Connection", "close")
        request.close_connection = True
        request.end_headers()
        if body:
            sleep(self.delay)
            request.wfile.write(content if most is None else content[:most])


@contextmanager
def serve(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub that this process uses inside the ``with``, without pauses between its tries."""
    from huggingface_hub import constants, file_download

    hub = HubServer(folder)
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "ENDPOINT", hub.address)
        patch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        patch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
        patch.setattr(file_download.time, "sleep", lambda seconds: None)
        try:
            yield hub
        finally:
            hub.close()
