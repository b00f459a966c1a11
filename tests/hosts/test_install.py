"""``install.py`` with pip itself, in an environment of its own: adds what is missing, moves nothing.

The packages are empty ones of the real names and versions, from a folder, so that no network is needed.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]

HOSTS = {"numpy": "1.26.2", "pillow": "9.5.0", "safetensors": "0.4.2", "torch": "2.1.2+cu121"}
"""What AUTOMATIC1111's web UI has, and its modules."""
MODULES = {"numpy": "numpy", "pillow": "PIL", "safetensors": "safetensors", "torch": "torch"}


def wheel(folder: Path, name: str, version: str, module: str, *needs: str) -> None:
    """A package with one empty module."""
    stem = f"{name.replace('-', '_')}-{version}"
    about = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {need}" for need in needs)]
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as file:
        file.writestr(f"{module}/__init__.py", "")
        file.writestr(f"{stem}.dist-info/METADATA", "\n".join(["Metadata-Version: 2.1", *about, ""]))
        file.writestr(
            f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{stem}.dist-info/RECORD", "")


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The host's packages, newer ones of the same, and OpenCV for old and for new NumPy."""
    folder = tmp_path_factory.mktemp("wheels")
    for name, version in {**HOSTS, "a1111-thing": "1.0"}.items():
        wheel(folder, name, version, MODULES.get(name, "thing"))
    for name, version in {"numpy": "2.4.0", "pillow": "12.0.0", "safetensors": "0.8.0"}.items():
        wheel(folder, name, version, MODULES[name])
    wheel(folder, "opencv-python-headless", "4.10.0.84", "cv2", "numpy>=1.21")
    wheel(folder, "opencv-python-headless", "4.13.0.92", "cv2", "numpy>=2")
    return folder


class Environment:
    """A host's environment, with pip that sees nothing but the wheels."""

    def __init__(self, folder: Path, wheels: Path) -> None:
        venv.create(folder, with_pip=True)
        self.python = str(folder / ("Scripts" if os.name == "nt" else "bin") / "python")
        self._settings = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "PYTHON"))},
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(wheels),
        }

    def run(self, *command: str, **changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.python, *command],
            cwd=ROOT,
            env={**self._settings, **changes},
            capture_output=True,
            text=True,
            check=False,
        )

    def installed(self) -> dict[str, str]:
        lines = self.run("-m", "pip", "freeze").stdout.split()
        return dict(line.split("==") for line in lines)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory, wheels: Path) -> Environment:
    made = Environment(tmp_path_factory.mktemp("host") / "venv", wheels)
    done = made.run("-m", "pip", "install", *(f"{name}=={version}" for name, version in HOSTS.items()))
    assert done.returncode == 0, done.stderr
    return made


def test_opencv_is_added_and_the_hosts_packages_stay(host: Environment, tmp_path: Path) -> None:
    assert host.installed() == HOSTS
    done = host.run("-m", "pip", "install", "-r", "requirements.txt")  # first, as ComfyUI-Manager does
    assert done.returncode == 0, done.stderr
    assert host.installed() == HOSTS
    done = host.run("install.py", PYTHONPATH=str(tmp_path))  # as AUTOMATIC1111's web UI does
    assert done.returncode == 0, done.stdout + done.stderr
    assert host.installed() == {**HOSTS, "opencv-python-headless": "4.10.0.84"}
    again = host.run("install.py")
    assert (again.returncode, again.stdout) == (0, "")


def test_where_there_is_no_way_it_says_so_and_changes_nothing(tmp_path: Path, wheels: Path) -> None:
    empty = tmp_path / "wheels"
    empty.mkdir()
    host = Environment(tmp_path / "venv", empty)
    done = host.run("install.py")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == (
        "ControlKit: could not install safetensors, pillow, numpy, opencv-python-headless "
        "beside what is there; nothing was changed"
    )
    assert host.installed() == {}


def module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ck_install", ROOT / "install.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_of_two_the_one_in_use_is_held_and_what_pip_cannot_read_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place, version in (("first", "1.26.2"), ("second", "2.0.0")):
        about = tmp_path / place / f"Num_Py-{version}.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: Num_Py\nVersion: {version}\n")
    for name, version in (("old", "2008-12-unknown"), ("torch", "2.1.2+cu121"), ("dev", "1.0rc1.post2.dev3")):
        about = tmp_path / "first" / f"{name}-1.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "first"), str(tmp_path / "second")])
    assert module().held().split() == ["dev==1.0rc1.post2.dev3", "num-py==1.26.2", "torch==2.1.2+cu121"]


def test_the_web_uis_own_index_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    install, calls = module(), list[list[str]]()

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(install, "missing", lambda: ["pillow"])
    monkeypatch.setattr(install.subprocess, "run", run)
    monkeypatch.setenv("INDEX_URL", "https://index.example/simple")
    assert install.main() == 0
    (command,) = calls
    assert command[command.index("--index-url") + 1] == "https://index.example/simple"
    assert command[-1] == "pillow"
