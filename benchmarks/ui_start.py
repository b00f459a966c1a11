"""How long is it from ``controlkit ui`` to a page that can be used? The real command, a real browser.

    python benchmarks/ui_start.py [RUNS]

Chromium is started first and waits; then the clock starts with the process. *Address*: the command printed
it. *Page*: the button that makes pictures can be seen and clicked. *Preview*: a photograph was given, and
what the module will see is there. *Picture*: a first picture of 4 steps is made, so the model is loaded.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

CODE = "from controlkit.cli import main; import sys; sys.exit(main())"
CHROMIUM = os.environ.get("CONTROLKIT_CHROMIUM") or shutil.which("chromium")


def main() -> None:
    """Print a line for each run, and the load of the machine."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        for _ in range(runs):
            with tempfile.TemporaryDirectory() as folder:
                load = os.getloadavg()[0]
                times = measured(browser, Path(folder))
                shown = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in times.items())
                print(f"{shown} (load before {load:.1f})", flush=True)
        browser.close()


def measured(browser: Any, folder: Path) -> dict[str, float]:
    """Seconds from the start of the process to each of the moments."""
    photo = folder / "photo.png"
    Image.linear_gradient("L").resize((128, 128)).rotate(30).save(photo)
    command = [sys.executable, "-c", CODE, "ui", "--port", "0", "--json", "--out", "pictures"]
    times: dict[str, float] = {}
    begun = time.perf_counter()
    started = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    try:
        text = ""
        while not text.endswith("}\n"):
            line = started.stdout.readline()
            if not line:
                raise SystemExit("the server ended")
            text += line
        times["address"] = time.perf_counter() - begun
        page = browser.new_page()
        page.goto(json.loads(text)["address"])
        page.wait_for_selector("#go:not([disabled])", state="visible")
        page.click("#prompt textarea")
        times["page"] = time.perf_counter() - begun
        page.set_input_files("#unit1-image input[type=file]", str(photo))
        page.wait_for_selector("#unit1-seen img")
        times["preview"] = time.perf_counter() - begun
        page.fill("#steps input[type=number]", "4")
        page.press("#steps input[type=number]", "Tab")
        page.click("#go")
        page.wait_for_selector("#stage [data-state=done]", timeout=120_000)
        times["picture"] = time.perf_counter() - begun
        page.close()
    finally:
        started.send_signal(signal.SIGINT)
        started.wait(60)
    return times


if __name__ == "__main__":
    main()
