"""In a real SD.Next: it starts with the extension, whose units act through its API and leave nothing.

Its weights are the tiny ones of the other tests, in a folder of diffusers' layout.
"""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import controlkit as ck
from controlkit.hosts.webui.units import COUNT, GUIDE_FIELDS, UNIT_FIELDS
from tests import tiny

ROOT = Path(__file__).resolve().parents[3]
FOLDER, PYTHON = "CONTROLKIT_SDNEXT", "CONTROLKIT_SDNEXT_PYTHON"
FLAGS = [
    "--skip-all",
    "--quick",
    "--experimental",
    "--ignore",
    "--use-cpu",
    "all",
    "--server-name",
    "127.0.0.1",
]
REQUEST = {
    "prompt": "a",
    "steps": 4,
    "width": 64,
    "height": 64,
    "seed": 5,
    "cfg_scale": 5,
    "sampler_name": "Euler",
}


class Server:
    """SD.Next with this repository among its extensions."""

    def __init__(self, base: Path) -> None:
        self.base = base
        (base / "extensions").mkdir()
        (base / "extensions" / "controlkit").symlink_to(ROOT)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._url = f"http://127.0.0.1:{port}"
        self._log = (base / "log").open("w")
        place = Path(os.environ[FOLDER])
        command = [os.environ[PYTHON], "launch.py", *FLAGS, "--port", str(port), "--data-dir", str(base)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PIP_NO_INDEX": "1", "COLUMNS": "500"}
        self._process = subprocess.Popen(
            command, stdout=self._log, stderr=subprocess.STDOUT, cwd=place, env=environment
        )
        end = time.monotonic() + 240
        while time.monotonic() < end and self._process.poll() is None:
            try:
                self.get("/sdapi/v1/version")
                return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(1)
        self.stop()
        raise RuntimeError(f"SD.Next did not start:\n{self.log[-3000:]}")

    @property
    def log(self) -> str:
        return (self.base / "log").read_text()

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        self._log.close()

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self._url + path, timeout=60) as answer:
            return json.load(answer)

    def post(self, path: str, body: Any) -> Any:
        """The answer, also where that is an error."""
        data = json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            return json.load(error)

    def picture(self, *units: dict[str, Any], **changes: Any) -> np.ndarray:
        answer = self.post("/sdapi/v1/txt2img", asked(*units, **changes))
        (data,) = answer["images"]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"), dtype=int)


def asked(*units: dict[str, Any], **changes: Any) -> dict[str, Any]:
    scripts = {"alwayson_scripts": {"controlkit": {"args": list(units)}}} if units else {}
    return {**REQUEST, "save_images": False, **scripts, **changes}


@pytest.fixture(scope="module")
def sdnext(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running SD.Next; skipped where there is none."""
    if not os.environ.get(FOLDER) or not os.environ.get(PYTHON):
        pytest.skip(f"needs SD.Next: set {FOLDER} to a checkout and {PYTHON} to its interpreter")
    base = tmp_path_factory.mktemp("sdnext")
    tiny.pipeline().save_pretrained(base / "models" / "Diffusers" / "tiny")
    tiny.controlnet().save(base / "models" / "ControlNet" / "edges")
    server = Server(base)
    try:
        server.post("/sdapi/v1/options", {"sd_model_checkpoint": "tiny"})
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def unit() -> dict[str, Any]:
    buffer = io.BytesIO()
    ck.embedded.scene(5).canny.resize((64, 64)).save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return {"model": "edges/diffusion_pytorch_model.safetensors", "image": data}


def test_it_starts_with_the_panel_on_the_tabs_that_take_extensions(sdnext: Server) -> None:
    scripts = sdnext.get("/sdapi/v1/scripts")
    assert [tab for tab, names in scripts.items() if "controlkit" in names] == ["txt2img", "img2img"]
    panels = [entry for entry in sdnext.get("/sdapi/v1/script-info") if entry["name"] == "controlkit"]
    assert [len(entry["args"]) for entry in panels] == [COUNT * len(UNIT_FIELDS) + len(GUIDE_FIELDS)] * 2
    for line in sdnext.log.splitlines():
        assert "controlkit" not in line or "ERROR" not in line, line


def test_units_act_and_what_is_off_is_off(sdnext: Server, unit: dict[str, Any]) -> None:
    plain = sdnext.picture()
    controlled = sdnext.picture(unit)
    half = sdnext.picture({**unit, "end": 0.5})
    assert np.abs(controlled - plain).max() > 8
    assert np.abs(half - plain).max() > 4
    assert np.abs(half - controlled).max() > 4
    assert np.array_equal(sdnext.picture({**unit, "weight": 0}), plain)
    assert np.array_equal(sdnext.picture(unit), controlled)
    assert np.array_equal(sdnext.picture(), plain)


@pytest.mark.parametrize(
    ("changes", "fields", "told"),
    [
        ({"model": "nothing"}, {}, "one of edges/diffusion_pytorch_model.safetensors"),
        ({}, {"enable_hr": True}, "a second pass"),
    ],
)
def test_what_cannot_be_done_ends_the_picture_and_the_next_is_as_ever(
    sdnext: Server, unit: dict[str, Any], changes: Any, fields: Any, told: str
) -> None:
    plain = sdnext.picture()
    answer = sdnext.post("/sdapi/v1/txt2img", asked({**unit, **changes}, **fields))
    assert not answer.get("images")
    assert told in " ".join((str(answer.get("errors")) + sdnext.log).split())
    assert np.array_equal(sdnext.picture(), plain)
