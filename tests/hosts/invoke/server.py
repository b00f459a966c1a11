"""An InvokeAI started for the tests, and graphs through its queue."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[3]
ENVIRONMENT = "CONTROLKIT_INVOKEAI"
SETTINGS = "schema_version: 4.0.2\nhost: 127.0.0.1\nport: {port}\ndevice: cpu\nprecision: float32\n"

Link = tuple[str, str]
"""The node and the output that an input is linked to."""


class Failed(Exception):
    """A graph that ended with an error, or was refused: InvokeAI's own account of it."""


def script() -> Path:
    """The program ``invokeai-web`` beside the interpreter, or in the folder, that the environment names."""
    place = Path(os.environ[ENVIRONMENT])
    return (place if place.is_dir() else place.parent) / "invokeai-web"


MAPS = """
import io, json, sys
import numpy as np
from PIL import Image
import controlkit as ck

folder, asked = sys.argv[1], json.loads(sys.argv[2])
photo = Image.open(f"{folder}/photo.png")
for key, name, options in asked:
    if "mask" in options:
        options["mask"] = Image.open(f"{folder}/mask.png")
    ck.preprocess(photo, name, **options).save(f"{folder}/{key}.png")
"""


def maps_of(
    photo: Image.Image, mask: Image.Image, asked: list[tuple[str, str, dict[str, Any]]], folder: Path
) -> dict[str, Image.Image]:
    """What Python makes of a photo with InvokeAI's interpreter, whose OpenCV may be another than ours.

    Args:
        photo: The photo.
        mask: What stands for the option ``mask`` where one is given.
        asked: A key, a detector and its options, each.
        folder: An empty one.
    """
    photo.save(folder / "photo.png")
    mask.save(folder / "mask.png")
    python = str(script().with_name("python"))
    subprocess.run([python, "-c", MAPS, str(folder), json.dumps(asked)], cwd=ROOT, check=True)
    return {key: Image.open(folder / f"{key}.png") for key, _, _ in asked}


class Server:
    """InvokeAI with this repository as one of its node packs.

    Args:
        base: An empty folder for its settings, pictures and packs.
        pack: What the clone is called.

    Attributes:
        start: What it had written when it began to answer.
        watched: Programs and connections that our code had caused by then, one a line.
    """

    def __init__(self, base: Path, pack: str) -> None:
        self.base = base
        (base / "nodes").mkdir(parents=True)
        (base / "nodes" / pack).symlink_to(ROOT)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        (base / "invokeai.yaml").write_text(SETTINGS.format(port=port))
        self._log = (base / "log").open("w")
        watch = {"CONTROLKIT_WATCH": str(base / "watched"), "CONTROLKIT_WATCH_ROOT": str(ROOT)}
        offline = {"HF_HUB_OFFLINE": "1", "NO_COLOR": "1", "PYTHONPATH": str(ROOT / "tests/hosts/watch")}
        self._process = subprocess.Popen(
            [str(script()), "--root", str(base)],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            cwd=base,
            env={**os.environ, **watch, **offline},
        )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise
        self.start = self.log
        self.watched = (base / "watched").read_text()

    @property
    def log(self) -> str:
        return (self.base / "log").read_text()

    def stop(self) -> None:
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        self._log.close()

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.load(answer)

    def post(self, path: str, body: Any, kind: str = "application/json", method: str = "POST") -> Any:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": kind}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            raise Failed(error.read().decode()) from None

    def upload(self, picture: Image.Image) -> dict[str, str]:
        """Put a picture into the gallery; what an input of that kind holds."""
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG")
        edge = uuid.uuid4().hex
        head = f'--{edge}\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n'
        body = (
            f"{head}Content-Type: image/png\r\n\r\n".encode()
            + buffer.getvalue()
            + f"\r\n--{edge}--\r\n".encode()
        )
        place = "/api/v1/images/upload?image_category=user&is_intermediate=false"
        return {"image_name": self.post(place, body, f"multipart/form-data; boundary={edge}")["image_name"]}

    def picture(self, output: dict[str, Any]) -> Image.Image:
        """The picture that a node put out, as it was saved."""
        name = output["image"]["image_name"] if "image" in output else output["image_name"]
        with urllib.request.urlopen(f"{self.url}/api/v1/images/i/{name}/full", timeout=60) as answer:
            picture = Image.open(io.BytesIO(answer.read()))
            picture.load()
        return picture

    def pixels(self, output: dict[str, Any]) -> np.ndarray:
        return np.asarray(self.picture(output), dtype=int)

    def queue(self, nodes: dict[str, dict[str, Any]]) -> int:
        """Queue a graph: nodes by name, with ``type`` and inputs; a link is a pair of name and output."""
        made: dict[str, Any] = {}
        edges: list[dict[str, Any]] = []
        for name, inputs in nodes.items():
            made[name] = {"id": name, "use_cache": False}
            for key, value in inputs.items():
                for link in value if isinstance(value, list) else [value]:
                    if isinstance(link, tuple):
                        source = {"node_id": link[0], "field": link[1]}
                        edges.append({"source": source, "destination": {"node_id": name, "field": key}})
                    else:
                        made[name][key] = value
        batch = {"graph": {"id": uuid.uuid4().hex, "nodes": made, "edges": edges}, "runs": 1}
        return self.post("/api/v1/queue/default/enqueue_batch", {"batch": batch})["item_ids"][0]

    def item(self, number: int) -> dict[str, Any]:
        return self.get(f"/api/v1/queue/default/i/{number}")

    def run(self, nodes: dict[str, dict[str, Any]], timeout: float = 300) -> dict[str, dict[str, Any]]:
        """Queue a graph, wait, and return what each of its nodes put out.

        Raises:
            Failed: It ended with an error.
        """
        item = self.wait(self.queue(nodes), timeout)
        if item["status"] != "completed":
            raise Failed(f"{item['error_type']}: {item['error_message']}")
        session = item["session"]
        prepared = session["prepared_source_mapping"]
        return {prepared[key]: value for key, value in session["results"].items()}

    def wait(self, number: int, timeout: float = 300) -> dict[str, Any]:
        """Wait until an item of the queue has ended."""
        end = time.monotonic() + timeout
        item = self.item(number)
        while time.monotonic() < end:
            item = self.item(number)
            if item["status"] in ("completed", "failed", "canceled"):
                return item
            time.sleep(0.1)
        raise TimeoutError(f"{item['status']}\n{self.log[-3000:]}")

    def _wait(self) -> None:
        end = time.monotonic() + 240
        while time.monotonic() < end and self._process.poll() is None:
            try:
                self.get("/api/v1/app/version")
                return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.5)
        raise RuntimeError(f"InvokeAI did not start:\n{self.log[-3000:]}")
