"""What a web UI runs once after it fetched this repository: installs what is missing, moves nothing.

ComfyUI-Manager and AUTOMATIC1111 (and Forge, SD.Next) run this file. Every package that is installed is held
at its version, so that nothing of the host's is moved; where that leaves no way, it says so and stops.
"""

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from importlib.metadata import distributions
from pathlib import Path

NEEDED = {"safetensors": "safetensors", "PIL": "pillow", "numpy": "numpy", "cv2": "opencv-python-headless"}
"""Modules, and the package of each. OpenCV has several packages, and any will do: the module counts."""

VERSION = re.compile(
    r"v?(\d+!)?\d+(\.\d+)*"
    r"([-_.]?(a|b|c|rc|alpha|beta|pre|preview)[-_.]?\d*)?"
    r"(-\d+|[-_.]?(post|rev|r)[-_.]?\d*)?"
    r"([-_.]?dev[-_.]?\d*)?"
    r"(\+[a-z0-9]+([-_.][a-z0-9]+)*)?",
    re.IGNORECASE,
)
"""What pip reads as a version. Very old packages may have others, over which it would stop."""


def missing() -> list[str]:
    """Packages whose module is not there."""
    return [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]


def held() -> str:
    """Everything that is installed, as constraints; of a package that is there twice, the one in use."""
    found: dict[str, str] = {}
    for installed in distributions():
        name, version = installed.metadata["Name"], installed.version
        if name and version and VERSION.fullmatch(version):
            found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), version)
    return "".join(f"{name}=={version}\n" for name, version in sorted(found.items()))


def main() -> int:
    wanted = missing()
    if not wanted:
        return 0
    print(f"ControlKit: installing {', '.join(wanted)}")
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "held.txt"
        constraints.write_text(held(), encoding="utf-8")
        command = [sys.executable, "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
        if os.environ.get("INDEX_URL"):  # how AUTOMATIC1111's web UI is told of another one
            command += ["--index-url", os.environ["INDEX_URL"]]
        done = subprocess.run([*command, "--constraint", str(constraints), *wanted], check=False)
    if done.returncode:
        print(f"ControlKit: could not install {', '.join(wanted)} beside what is there; nothing was changed")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
