"""A ComfyUI started for the tests, and prompts through its API."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

ROOT = Path(__file__).resolve().parents[3]
PACK = Path(__file__).parent / "pack"


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    """A node of a prompt; a link to another is ``[its name, number of the output]``."""
    return {"class_type": kind, "inputs": inputs}


class Failed(Exception):
    """A prompt that ended with an error: ComfyUI's own account of it."""


class Server:
    """ComfyUI with this repository as its extension.

    Args:
        comfy: The checkout.
        python: Its interpreter.
        base: An empty folder for models, output and the extensions.
    """

    def __init__(self, comfy: Path, python: str, base: Path) -> None:
        self.base = base
        packs = base / "custom_nodes"
        packs.mkdir(parents=True)
        (packs / "controlkit").symlink_to(ROOT)
        (packs / "controlkit_tests").symlink_to(PACK)
        (base / "user" / "default").mkdir(parents=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        command = [python, str(comfy / "main.py"), "--cpu", "--listen", "127.0.0.1"]
        command += ["--port", self.url.rpartition(":")[2], "--base-directory", str(base)]
        command += ["--disable-api-nodes", "--disable-auto-launch", "--database-url", "sqlite:///:memory:"]
        self._log = (base / "log").open("w")
        self._process = subprocess.Popen(command, stdout=self._log, stderr=subprocess.STDOUT)
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
        self._process.wait(30)
        self._log.close()

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.load(answer)

    def forget(self) -> None:
        """Empty ComfyUI's cache of what nodes returned."""
        self._post("/free", {"unload_models": True, "free_memory": True})
        time.sleep(1.5)

    def run(self, prompt: dict[str, Any], timeout: float = 240) -> dict[str, Any]:
        """Queue a prompt, wait, and return what its nodes put out.

        Raises:
            Failed: It ended with an error.
        """
        name = self._post("/prompt", {"prompt": prompt, "client_id": "tests"})["prompt_id"]
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            history = self.get(f"/history/{name}").get(name)
            if history is not None:
                if history["status"]["status_str"] != "success":
                    _, about = history["status"]["messages"][-1]
                    raise Failed(
                        f"{about.get('exception_type')}: {about.get('exception_message', '').strip()}"
                    )
                return history["outputs"]
            time.sleep(0.1)
        raise TimeoutError(f"{prompt}\n{self.log[-3000:]}")

    def pictures(self, outputs: dict[str, Any], name: str) -> np.ndarray:
        """What a node saved, (n, H, W, 3) int."""
        rows: list[np.ndarray] = []
        for saved in outputs[name]["images"]:
            query = "&".join(f"{key}={value}" for key, value in saved.items())
            with urllib.request.urlopen(f"{self.url}/view?{query}", timeout=60) as answer:
                rows.append(np.asarray(Image.open(io.BytesIO(answer.read())).convert("RGB"), dtype=int))
        return np.stack(rows)

    def latents(self, outputs: dict[str, Any], name: str) -> Tensor:
        """What a node SaveLatent saved."""
        (saved,) = outputs[name]["latents"]
        return load_file(self.base / "output" / saved["subfolder"] / saved["filename"])["latent_tensor"]

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.loads(answer.read() or b"{}")
        except urllib.error.HTTPError as error:
            raise Failed(error.read().decode()) from None

    def _wait(self) -> None:
        end = time.monotonic() + 180
        while time.monotonic() < end and self._process.poll() is None:
            try:
                self.get("/system_stats")
                return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.5)
        raise RuntimeError(f"ComfyUI did not start:\n{self.log[-3000:]}")


def start(base: Path) -> Server:
    """As the environment says: CONTROLKIT_COMFYUI and CONTROLKIT_COMFYUI_PYTHON."""
    comfy = Path(os.environ["CONTROLKIT_COMFYUI"])
    return Server(comfy, os.environ["CONTROLKIT_COMFYUI_PYTHON"], base)
