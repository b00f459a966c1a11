"""The files at the top of the repository that a web UI runs, without one."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[3]
HEAVY = "{'torch', 'numpy', 'PIL', 'cv2', 'diffusers', 'transformers'}"


def python(code: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-1500:]
    return done.stdout.strip()


@pytest.fixture
def clones(tmp_path: Path) -> Path:
    """A folder with the repository in it under two names."""
    for name in ("controlkit", "some-clone"):
        (tmp_path / name).mkdir()
        for entry in ("__init__.py", "controlkit", "adapters", "preprocessors"):
            (tmp_path / name / entry).symlink_to(ROOT / entry)
    return tmp_path


def test_a_clone_called_controlkit_becomes_the_package(clones: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(clones)!r})\n"
        "import controlkit as ck, controlkit.errors\n"
        f"assert not {HEAVY} & set(sys.modules)\n"
        "print(ck.__version__, ck.detectors()[0].name, controlkit.errors.BaseMismatch is ck.BaseMismatch)"
    )
    assert python(code, clones).split()[1:] == ["canny", "True"]


def test_without_comfyui_it_imports_nothing(clones: Path) -> None:
    code = (
        "import importlib.util as u, sys\n"
        f"spec = u.spec_from_file_location('a_x_b', {str(clones / 'some-clone' / '__init__.py')!r})\n"
        "before = list(sys.path)\n"
        "module = u.module_from_spec(spec); spec.loader.exec_module(module)\n"
        "print(hasattr(module, 'NODE_CLASS_MAPPINGS'), 'controlkit' in sys.modules, sys.path == before)"
    )
    assert python(code, clones) == "False False True"


@pytest.fixture
def install() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ck_install", ROOT / "install.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_install_runs_nothing_where_nothing_is_missing(install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install.subprocess, "run", lambda *_, **__: pytest.fail("ran something"))
    assert install.main() == 0


def test_install_adds_what_is_missing_and_holds_the_rest(install, monkeypatch, capsys) -> None:
    calls: list[list[str]] = []
    held: list[str] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        held.extend(Path(command[command.index("--constraint") + 1]).read_text().splitlines())
        return subprocess.CompletedProcess(command, 1)

    find = importlib.util.find_spec
    monkeypatch.setattr(install.subprocess, "run", run)
    monkeypatch.setattr(
        install.importlib.util, "find_spec", lambda name: None if name == "cv2" else find(name)
    )
    assert install.main() == 1
    assert calls[0][-1] == "opencv-python-headless"
    assert len([part for part in calls[0] if part in install.NEEDED.values()]) == 1
    assert any(line.startswith("numpy==") for line in held)
    assert "nothing was changed" in capsys.readouterr().out


def test_requirements_move_nothing_of_the_hosts() -> None:
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line[:1] != "#"]
    assert sorted(lines) == ["pillow", "safetensors"]
