"""What users get: the wheel's contents, and the package installed from it, away from the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import controlkit as ck
from tests.test_house import MODULES, ROOT, tracked_files

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the tracked files."""
    folder = tmp_path_factory.mktemp("wheel")
    for path in tracked_files():
        target = folder / "source" / path.relative_to(ROOT)
        if path.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target, follow_symlinks=False)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps"]
    command += ["--no-build-isolation", "--wheel-dir", str(folder), str(folder / "source")]
    subprocess.run(command, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    meta = f"controlkit-{ck.__version__}.dist-info/"
    inside = {name for name in names if not name.startswith(meta)}
    tracked = {path for path in tracked_files() if path.exists()}
    modules = {
        name.replace(".", "/") + ("/__init__.py" if path.name == "__init__.py" else ".py")
        for name, path in MODULES.items()
        if path in tracked
    }
    weights = {str(path.relative_to(ROOT)) for path in tracked if "controlkit/embedded/models/" in str(path)}
    assert inside == modules | weights | {"controlkit/py.typed"}
    assert meta + "licenses/LICENSE" in names


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel, and beside it what this one has installed of other packages."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    interpreter = folder / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", str(interpreter), "install", "--quiet", "--no-index"]
    subprocess.run([*command, "--no-deps", str(wheel)], check=True, capture_output=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return interpreter


def outside(python: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [str(python), *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_the_installed_package_is_complete(python: Path, tmp_path: Path) -> None:
    code = (
        "import controlkit, controlkit.adapters, controlkit.preprocessors as p; print(controlkit.__file__);"
    )
    code += "print(p.__file__); print(len(controlkit.detectors()));"
    code += "[getattr(controlkit, name) for name in controlkit.__all__]"
    done = outside(python, tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr
    places = done.stdout.split()[:2]
    assert all(str(python.parent.parent) in place for place in places)
    refused = outside(python, tmp_path, "-c", "import adapters")
    assert "ModuleNotFoundError" in refused.stderr


def test_the_program_is_installed(python: Path, tmp_path: Path) -> None:
    program = python.parent / "controlkit"
    done = subprocess.run(
        [str(program), "--version"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"controlkit {ck.__version__}\n"


def test_tests_pass_away_from_the_checkout(python: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\npythonpath = .\naddopts = --import-mode=importlib\nmarkers =\n  slow\n  gpu\n  weights\n"
    )
    files = ("tests/recipes/test_files.py", "tests/cli/test_commands.py")
    done = outside(python, tmp_path, "-m", "pytest", "-q", "-x", *files)
    assert done.returncode == 0, done.stdout[-2000:]
