"""Starting the server: the application put together, the address checked, and uvicorn run."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from controlkit.errors import ParameterError
from controlkit.extras import needed
from controlkit.ui.guard import Door, Guard, is_loopback
from controlkit.ui.places import Places

LEAST_TOKEN = 16
"""Characters of a token at least."""

TRIES = 20
"""Ports that are tried, from the one that was asked for."""


@dataclass(frozen=True)
class Settings:
    """How the server is started.

    Args:
        output: Folder of pictures.
        models: Folder of local weights.
        model: Source of the model that is used where none is named.
        door: Address, token, and who else is let in.
        port: To listen on; where it is taken, one of those that follow.
        page: Whether there is a page, or the API alone.
        downloads: Whether models may be fetched from the hub.
    """

    output: Path
    models: Path | None = None
    model: str = "embedded:base"
    door: Door = field(default_factory=Door)
    port: int = 7860
    page: bool = True
    downloads: bool = False

    def check(self) -> None:
        """Refuse an address that others can reach without a token.

        Raises:
            ParameterError: Such an address, a short token, or a folder that is not there.
        """
        if not is_loopback(self.door.host) and not self.door.token:
            raise ParameterError(
                "--host",
                found=f"{self.door.host}, which others can reach",
                expected="a token as well",
                fix="Set CONTROLKIT_TOKEN to a long random text, or leave --host out.",
            )
        if self.door.token and len(self.door.token) < LEAST_TOKEN:
            raise ParameterError(
                "token", found=f"{len(self.door.token)} characters", expected=f"at least {LEAST_TOKEN}"
            )
        if self.models is not None and not self.models.is_dir():
            raise ParameterError("--models", found=f"no folder {self.models}", expected="a folder")
        if not 0 <= self.port <= 65535:
            raise ParameterError("--port", found=str(self.port), expected="0 to 65535")


def application(settings: Settings) -> tuple[Guard, Any]:
    """The application behind its door, and the service that it offers.

    Raises:
        MissingExtra: Gradio is not installed.
    """
    _quiet(settings)
    needed("gradio" if settings.page else "fastapi", "the page needs Gradio", "'controlkit[ui]'")
    from controlkit.ui.api import make_app
    from controlkit.ui.service import Service
    from controlkit.ui.webui import add_routes

    service = Service(
        Places(settings.output.resolve(), settings.models and settings.models.resolve()), settings.model
    )
    app = make_app(service)
    add_routes(app, service)
    if settings.page:
        from controlkit.ui.page import mount

        app = mount(app, service)
    return Guard(app, settings.door), service


def _quiet(settings: Settings) -> None:
    """Before Gradio and the hub are imported: nothing is reported, fetched or kept by them."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    if "GRADIO_TEMP_DIR" not in os.environ:
        uploads = tempfile.mkdtemp(prefix="controlkit-uploads-")
        os.environ["GRADIO_TEMP_DIR"] = uploads
        atexit.register(shutil.rmtree, uploads, ignore_errors=True)
    if not settings.downloads:
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.environ["TRANSFORMERS_OFFLINE"] = "1"
    for name in ("httpx", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).setLevel(logging.WARNING)


def serve(settings: Settings, ready: Callable[[str], None] | None = None) -> None:
    """Run the server until it is interrupted.

    Args:
        settings: How.
        ready: Called with the page's address once it can be opened.

    Raises:
        ParameterError: An address that cannot be listened on, or must not.
        MissingExtra: Gradio is not installed.
    """
    settings.check()
    app, service = application(settings)
    import uvicorn

    listener, port = _listen(settings.door.host, settings.port)
    name = f"[{settings.door.host}]" if ":" in settings.door.host else settings.door.host
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        lifespan="on",
        timeout_graceful_shutdown=3,
        h11_max_incomplete_event_size=64 * 1024,
    )
    server = _announcing(config, lambda: ready(f"http://{name}:{port}/") if ready else None)
    try:
        server.run(sockets=[listener])
    finally:
        service.jobs.close(timeout=30)
        listener.close()


def _listen(host: str, port: int) -> tuple[socket.socket, int]:
    """A socket that listens on the first free port from ``port`` on; 0: any."""
    problem = "none is free"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in range(port, min(port + TRIES, 65536)) if port else (0,):
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, candidate))
            listener.listen(128)
            return listener, listener.getsockname()[1]
        except OSError as error:
            listener.close()
            problem = error.strerror or str(error)
    raise ParameterError(
        "--port", found=f"{host}:{port} and those that follow: {problem.lower()}", expected="a free port"
    )


def _announcing(config: Any, started: Callable[[], None]) -> Any:
    """A server that says when it has started."""
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                started()

    return Server(config)
