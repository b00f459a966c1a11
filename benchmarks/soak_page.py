"""Does the page stay right and small for long? Four clients with cancels and disconnects.

    python benchmarks/soak_page.py [SECONDS]

The real command is started, page and API, on the embedded model. Three clients use the API; what each does
next is drawn by chance: wait for a picture, cancel it after a while, hang up while waiting and come back,
call ``/sdapi/v1/txt2img`` and wait or hang up for good, make a grid. The fourth is a browser that presses
*Generate* and, half of the time, goes away. Every picture that was made is compared with the one that
Python made of the same recipe, to the bit; each job must end as what it was told; the memory of the server is
read all along, and may not grow in the last third. Exit status 1 if anything is wrong.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CODE = "from controlkit.cli import main; import sys; sys.exit(main())"
CHROMIUM = os.environ.get("CONTROLKIT_CHROMIUM") or shutil.which("chromium")
STEPS = 4
GROWTH = 25
"""MiB by which the most memory in the last third may be above that in the middle one. The first third is
for what is loaded and remembered once; a leak of 0.1 MiB in each of hundreds of jobs would be seen."""


def recipes() -> list[dict[str, Any]]:
    """What is asked for: no control, one, two, a region, a curve, guidance, a picture to start from, a mask
    that is filled; three seeds of each."""
    import controlkit as ck

    scene = ck.embedded.scene(3)

    def data(picture: Image.Image) -> dict[str, str]:
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        return {"data": base64.b64encode(buffer.getvalue()).decode()}

    canny = {"module": "embedded:controlnet-canny", "image": data(scene.image), "detect": "canny"}
    depth = {"module": "embedded:t2i-depth", "image": data(scene.depth), "scale": [[0, 1.0], [0.5, 0.2]]}
    half = Image.new("L", (128, 128))
    half.paste(255, (0, 0, 64, 128))
    start = {"image": data(scene.image), "strength": 0.8}
    asked: list[dict[str, Any]] = [
        {"controls": []},
        {"controls": [canny]},
        {"controls": [canny, depth]},
        {"controls": [{**canny, "mask": data(half)}]},
        {"controls": [{"guidance": "color", "target": "red"}]},
        {"controls": [canny], "init": start},
        {"controls": [], "init": {**start, "mask": data(half)}},
    ]
    common = {"prompt": scene.caption, "steps": STEPS, "guidance_scale": 2.0}
    return [{**common, "seed": seed, **one} for one in asked for seed in range(3)]


def page_recipes() -> list[dict[str, Any]]:
    """What the browser makes: the page as it begins, with few steps."""
    from controlkit.ui.settings import Page

    own = Page()
    common = {"prompt": own.prompt, "steps": STEPS, "guidance_scale": own.guidance_scale}
    return [{**common, "seed": seed} for seed in range(3)]


def made_of(wanted: list[dict[str, Any]]) -> list[np.ndarray]:
    """The right pictures."""
    import controlkit as ck

    return [np.asarray(ck.run(one)[0]) for one in wanted]


def _pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


class Soak:
    """The server, and what is known about it."""

    def __init__(self, address: str, pid: int, seconds: float) -> None:
        self.address, self.pid, self.seconds = address, pid, seconds
        self.begun = time.monotonic()
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.lock = threading.Lock()

    @property
    def on(self) -> bool:
        """Whether it goes on."""
        return time.monotonic() - self.begun < self.seconds

    def count(self, name: str, number: int = 1) -> None:
        """Count something."""
        with self.lock:
            self.counts[name] += number

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """An answer of the API."""
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.address}{path}", content, method=method)
        request.add_header("content-type", "application/json")
        with urllib.request.urlopen(request, timeout=120) as answer:
            self.count("requests")
            return json.load(answer)

    def picture(self, name: str) -> np.ndarray:
        """The pixels of a result."""
        with urllib.request.urlopen(f"{self.address}api/results/{name}", timeout=60) as answer:
            return _pixels(answer.read())

    def hang_up(self, method: str, path: str, body: Any, after: float) -> None:
        """Send a request and close the connection without reading the answer."""
        host = self.address.split("//")[1].rstrip("/")
        connection = http.client.HTTPConnection(host, timeout=60)
        content = json.dumps(body).encode() if body is not None else None
        connection.request(method, f"/{path}", content, {"content-type": "application/json"})
        time.sleep(after)
        connection.close()
        self.count("hung up")

    def memory(self) -> int:
        """Resident memory of the server in MiB."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) // 1024

    def finished(self, key: str) -> dict[str, Any]:
        """A job, once it has ended."""
        job: dict[str, Any] = {"version": -1}
        while job.get("state") not in ("done", "failed", "cancelled"):
            job = self.ask("GET", f"api/jobs/{key}?wait=20&since={job['version']}&preview=true")
        return job

    def client(self, number: int, wanted: list[dict[str, Any]], right: list[np.ndarray]) -> None:
        """One client of the API."""
        chance = random.Random(number)
        while self.on:
            which = chance.randrange(len(wanted))
            acts = ("wait", "wait", "wait", "cancel", "cancel", "return", "webui", "grid", "theirs")
            try:
                self.turn(chance, chance.choice(acts), wanted[which], right[which])
            except Exception as error:  # whatever it is, it is a finding
                self.wrong.append(f"client {number}: {type(error).__name__}: {error}"[:300])

    def turn(self, chance: random.Random, act: str, recipe: dict[str, Any], right: np.ndarray) -> None:
        """One thing that a client does."""
        if act == "webui":
            body = {"prompt": recipe["prompt"], "steps": STEPS, "cfg_scale": 2.0, "width": 128, "height": 128}
            self.hang_up("POST", "sdapi/v1/txt2img", body, chance.random())
            self.count("unfollowed")
            return
        if act == "theirs" and not recipe["controls"] and "init" not in recipe:
            body = {"prompt": recipe["prompt"], "steps": STEPS, "cfg_scale": 2.0, "width": 128, "height": 128}
            self.count("unfollowed")
            told = self.ask("POST", "sdapi/v1/txt2img", {**body, "seed": recipe["seed"]})
            self.count("compared")
            if not np.array_equal(_pixels(base64.b64decode(told["images"][0])), right):
                self.wrong.append("txt2img: another picture")
            return
        if act == "grid" and recipe["controls"]:
            sweep = {"scales": [1.0], "seeds": [recipe["seed"]]}
            job = self.ask("POST", "api/sweep", {"recipe": recipe, "sweep": sweep})
            if self.finished(job["id"])["sheet"] is None:
                self.wrong.append("a grid without a sheet")
        else:
            job = self.ask("POST", "api/generate", recipe)
        key = job["id"]
        if act == "cancel":
            time.sleep(chance.random() * 2)
            self.ask("DELETE", f"api/jobs/{key}")
        elif act == "return":
            self.hang_up("GET", f"api/jobs/{key}?wait=30&since=99999", None, chance.random())
        job = self.finished(key)
        self.count(job["state"])
        allowed = ("done", "cancelled") if act == "cancel" else ("done",)
        if job["state"] not in allowed:
            self.wrong.append(f"{act}: {job['state']}: {job['error']}")
        for made in job["results"]:
            self.count("compared")
            if not np.array_equal(self.picture(made["name"]), right):
                self.wrong.append(f"{act}: {made['name']} is another picture")

    def browser(self, right: list[np.ndarray]) -> None:
        """The fourth client: a person at the page, who sometimes leaves."""
        from playwright.sync_api import sync_playwright

        chance = random.Random(99)
        with sync_playwright() as play:
            options = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
            chromium = play.chromium.launch(executable_path=CHROMIUM, args=options)
            while self.on:
                seed, leaves = chance.randrange(len(right)), chance.random() < 0.5
                page = chromium.new_page()
                try:
                    page.goto(self.address)
                    page.wait_for_selector("#go")
                    page.fill("#seed textarea, #seed input", str(seed))
                    steps = 100 if leaves else STEPS
                    page.fill("#steps input[type=number]", str(steps))
                    page.press("#steps input[type=number]", "Tab")
                    page.click("#go")
                    self.count("unfollowed")
                    if leaves:
                        page.wait_for_selector("#stage .ck-bar", timeout=60_000)
                        page.wait_for_timeout(chance.random() * 2000)
                        self.count("left the page")
                    else:
                        image = page.wait_for_selector("#stage [data-state=done] img", timeout=120_000)
                        name = (image.get_attribute("src") or "").rsplit("/", 1)[-1] if image else ""
                        self.count("compared")
                        if not np.array_equal(self.picture(name), right[seed]):
                            self.wrong.append(f"page: {name} is another picture")
                except Exception as error:
                    self.wrong.append(f"browser: {type(error).__name__}: {error}"[:300])
                finally:
                    page.close()
            chromium.close()


def main() -> int:
    """Run it, and print what was seen."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 600.0
    wanted, of_page = recipes(), page_recipes()
    right, page_right = made_of(wanted), made_of(of_page)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", CODE, "ui", "--port", "0", "--json", "--out", "pictures"]
        started = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert started.stdout is not None
        text = ""
        while not text.endswith("}\n"):
            text += started.stdout.readline()
        soak = Soak(json.loads(text)["address"], started.pid, seconds)
        clients = [threading.Thread(target=soak.client, args=(k, wanted, right)) for k in range(3)]
        clients.append(threading.Thread(target=soak.browser, args=(page_right,)))
        for client in clients:
            client.start()
        memory: list[tuple[float, int]] = []
        while any(client.is_alive() for client in clients):
            memory.append((time.monotonic() - soak.begun, soak.memory()))
            time.sleep(1)
        last = soak.ask("GET", "api/version")["jobs"]
        while last["submitted"] != last["done"] + last["failed"] + last["cancelled"]:
            time.sleep(0.2)
            last = soak.ask("GET", "api/version")["jobs"]
        memory.append((time.monotonic() - soak.begun, soak.memory()))
        with contextlib.suppress(ProcessLookupError):
            started.send_signal(signal.SIGINT)
        started.wait(60)
    return report(soak, last, memory)


def report(soak: Soak, last: dict[str, int], memory: list[tuple[float, int]]) -> int:
    """Print what was seen, and judge it."""
    counts = soak.counts
    followed = counts["done"] + counts["cancelled"] + counts["failed"]
    if last["submitted"] != followed + counts["unfollowed"]:
        soak.wrong.append(f"{last['submitted']} jobs, {followed} followed and {counts['unfollowed']} not")
    if last["failed"]:
        soak.wrong.append(f"{last['failed']} jobs failed")
    early = next((size for at, size in memory if at >= 10), memory[0][1])
    third = memory[-1][0] / 3
    middle, end = (max(size for at, size in memory if k <= at / third <= k + 1) for k in (1, 2))
    if end > middle + GROWTH:
        soak.wrong.append(f"memory grew from {middle} to {end} MiB")
    print(f"{memory[-1][0]:.0f} s; jobs {last}; clients {dict(counts)}")
    print(
        f"memory in MiB: {early} after 10 s, at most {max(m for _, m in memory)}, {memory[-1][1]} at the end"
    )
    minutes = [
        max(size for at, size in memory if k <= at // 60 < k + 1) for k in range(int(memory[-1][0] // 60))
    ]
    print("at most, minute by minute:", *minutes)
    for finding in soak.wrong[:20]:
        print("WRONG:", finding)
    print("all right" if not soak.wrong else f"{len(soak.wrong)} findings")
    return 1 if soak.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
