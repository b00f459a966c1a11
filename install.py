"""What a web UI runs once after it fetched this repository: installs what is missing, moves nothing.

ComfyUI-Manager and AUTOMATIC1111 (and Forge, SD.Next) run this file. Every package that is installed is held
at its version, so that nothing of the host's is moved; where that leaves no way, it says so and stops.
"""

import importlib.util
import subprocess
import sys
import tempfile
from importlib.metadata import distributions
from pathlib import Path

NEEDED = {"safetensors": "safetensors", "PIL": "pillow", "numpy": "numpy", "cv2": "opencv-python-headless"}
"""Modules, and the package of each. OpenCV has several packages, and any will do: the module counts."""


def missing() -> list[str]:
    """Packages whose module is not there."""
    return [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]


def held() -> str:
    """Everything that is installed, as constraints."""
    pairs = {(d.metadata["Name"], d.version) for d in distributions() if d.metadata["Name"]}
    return "".join(f"{name}=={version}\n" for name, version in sorted(pairs) if "+" not in version)


def main() -> int:
    wanted = missing()
    if not wanted:
        return 0
    print(f"ControlKit: installing {', '.join(wanted)}")
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "held.txt"
        constraints.write_text(held(), encoding="utf-8")
        command = [sys.executable, "-m", "pip", "install", "--constraint", str(constraints), *wanted]
        done = subprocess.run(command, check=False)
    if done.returncode:
        print(f"ControlKit: could not install {', '.join(wanted)} beside what is there; nothing was changed")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
