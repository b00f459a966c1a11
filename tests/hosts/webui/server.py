"""AUTOMATIC1111's web UI started for the tests, and pictures through its API."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

ROOT = Path(__file__).resolve().parents[3]
PROBE = Path(__file__).parent / "probe"
FLAGS = (
    "--use-cpu all --no-half --precision full --skip-torch-cuda-test --skip-prepare-environment"
    " --skip-install --nowebui --api --server-name 127.0.0.1 --do-not-download-clip --no-download-sd-model"
)


class Failed(Exception):
    """A request that ended with an error: the web UI's own account of it."""


class Server:
    """The web UI with this repository as its extension.

    Args:
        webui: The checkout.
        python: Its interpreter.
        base: A folder with its models, as `tiny.py` makes it.
        extensions: Whether ours is among its extensions; the probe always is.
        others: Folders of more extensions, by name.
        checkpoint: File of the checkpoint that it starts with.
    """

    flags = FLAGS
    paged = False
    checkpoint = "tiny.safetensors"
    patience = 180

    def __init__(
        self,
        webui: Path,
        python: str,
        base: Path,
        *,
        extensions: bool = True,
        others: Mapping[str, Path] | None = None,
        checkpoint: str | None = None,
    ) -> None:
        self.base = base
        self.bare: Picture  # one that was made before our extension was there
        self.theirs: dict[str, Picture]  # some that sd-webui-controlnet made then
        folder = base / "extensions"
        folder.mkdir(exist_ok=True)
        places = {"controlkit-probe": PROBE, **({"controlkit": ROOT} if extensions else {}), **(others or {})}
        for name, place in places.items():
            if not (folder / name).exists():
                (folder / name).symlink_to(place)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        command = [python, str(webui / "launch.py"), *self.flags.split()]
        command += ["--port", self.url.rpartition(":")[2], "--data-dir", str(base)]
        command += ["--ckpt", str(base / "models" / "Stable-diffusion" / (checkpoint or self.checkpoint))]
        (base / "run").mkdir(exist_ok=True)
        self._log = (base / "log").open("w")
        offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command,
            cwd=webui if self.paged else base / "run",  # its page's files are found from its own folder
            env={**os.environ, **offline},
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    @property
    def log(self) -> str:
        return (self.base / "log").read_text()

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._log.close()

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=120) as answer:
            return json.load(answer)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise Failed(error.read().decode()) from None

    def make(
        self,
        *units: Any,
        fails: int = 0,
        mode: str = "txt2img",
        theirs: Sequence[dict[str, Any]] = (),
        **given: Any,
    ) -> Picture:
        """One picture.

        Args:
            units: As our script takes them: dictionaries, or fields one after the other.
            fails: Number of the U-Net's call that the probe lets fail; 0: none.
            mode: ``txt2img`` or ``img2img``.
            theirs: Units of sd-webui-controlnet.
            given: More of the request, or in place of what is asked for here.

        Raises:
            Failed: The web UI answered with an error.
        """
        scripts: dict[str, Any] = {"controlkit probe": {"args": [str(self.base), fails]}}
        if theirs:
            scripts["controlnet"] = {"args": list(theirs)}
        if units:
            scripts["controlkit"] = {"args": list(units)}
        body = {
            "prompt": "a red brick house",
            "negative_prompt": "trees",
            "seed": 3,
            "steps": 4,
            "width": 64,
            "height": 64,
            "cfg_scale": 2.0,
            "sampler_name": "Euler",
            "scheduler": "Automatic",
            **given,
            "alwayson_scripts": scripts,
        }
        answer = self.post(f"/sdapi/v1/{mode}", body)
        info = json.loads(answer["info"])
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["images"][0]))).convert("RGB"))
        kept = load_file(self.base / "probe.safetensors")  # as long as the file is not written anew
        return Picture(pixels, {name: t.clone() for name, t in kept.items()}, info["infotexts"][0])

    def _wait(self) -> None:
        end = time.monotonic() + self.patience
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise Failed(self.log[-3000:])
            try:
                self.get("/sdapi/v1/sd-models")
                return
            except OSError:
                time.sleep(0.5)
        raise Failed(f"not up in time:\n{self.log[-3000:]}")


class Picture:
    """What came back, and what the probe wrote.

    Args:
        pixels: (H, W, 3).
        kept: ``x`` (the noise of each sampling), ``samples``, ``sigma``, ``cond``, ``uncond`` by number.
        infotext: The picture's parameters.
    """

    def __init__(self, pixels: Any, kept: dict[str, Tensor], infotext: str) -> None:
        self.pixels, self.kept, self.infotext = pixels, kept, infotext

    @property
    def latents(self) -> Tensor:
        """(pictures, channels, h, w), as the sampler returned them."""
        return self.kept["samples.0"]

    def all(self, name: str) -> list[Tensor]:
        """Everything of one name, in order."""
        found = [key for key in self.kept if key.rpartition(".")[0] == name]
        return [self.kept[key] for key in sorted(found, key=lambda key: int(key.rpartition(".")[2]))]


def sent(picture: Any) -> str:
    """A picture (H, W, 3) uint8 as base64."""
    stream = io.BytesIO()
    Image.fromarray(np.asarray(picture, np.uint8)).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()
