"""Forge started for the tests; its API is that of AUTOMATIC1111's web UI."""

from __future__ import annotations

from tests.hosts.webui import server


class Server(server.Server):
    """Forge with this repository as its extension."""

    flags = (
        "--always-cpu --skip-torch-cuda-test --skip-prepare-environment --skip-install --nowebui --api"
        " --server-name 127.0.0.1 --no-download-sd-model"
    )
    checkpoint = "slim.safetensors"
    patience = 300
