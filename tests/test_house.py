"""The rules of the house: packaging, links, imports, sizes, and the public surface."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import controlkit as ck

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SOURCES = {"controlkit": ROOT / "controlkit", "controlkit.adapters": ROOT / "adapters"}
SOURCES |= {"controlkit.preprocessors": ROOT / "preprocessors"}
MAX_LINES = 400


def package_files() -> Iterator[tuple[str, Path]]:
    """Every module of the package by its dotted name; links are not followed, so nothing comes twice."""
    for package, folder in SOURCES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            yield ".".join((package, *(part for part in parts if part != "__init__"))), path


MODULES = dict(package_files())


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Absolute names that a file imports, and whether only a type checker does."""
    tree = ast.parse(path.read_text())
    typing_only: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            typing_only |= {id(inner) for statement in node.body for inner in ast.walk(statement)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in typing_only) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                yield f"{node.module}.{alias.name}", id(node) in typing_only


def top_level_imports(path: Path) -> set[str]:
    """First parts of what importing this file imports at once, outside functions and type checking."""
    found: set[str] = set()

    def visit(nodes: list[ast.stmt]) -> None:
        for node in nodes:
            if isinstance(node, ast.Import):
                found.update(alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.split(".")[0])
            elif isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.dump(node.test):
                visit(node.body + node.orelse)
            elif isinstance(node, ast.Try):
                visit(node.body + node.orelse + node.finalbody)

    visit(ast.parse(path.read_text()).body)
    return found


# --- packaging ----------------------------------------------------------------------------------------


def test_every_folder_with_code_is_packaged() -> None:
    listed = PYPROJECT["tool"]["setuptools"]["packages"]
    folders = {
        name if path.name == "__init__.py" else name.rpartition(".")[0] for name, path in MODULES.items()
    }
    assert sorted(listed) == sorted(folders), "pyproject.toml: [tool.setuptools] packages"


def test_every_package_has_an_init() -> None:
    without = [str(path.parent) for path in MODULES.values() if not (path.parent / "__init__.py").is_file()]
    assert not without


@pytest.mark.parametrize("name", ["adapters", "preprocessors"])
def test_links_and_guards(name: str) -> None:
    link = ROOT / "controlkit" / name
    assert link.is_symlink()
    assert os.readlink(link) == f"../{name}"
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {name}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"ImportError: import controlkit.{name}, not {name}" in done.stderr


def test_weights_and_marker_are_package_data() -> None:
    data = PYPROJECT["tool"]["setuptools"]["package-data"]
    assert data == {
        "controlkit": ["py.typed"],
        "controlkit.embedded": ["models/**/*"],
        "controlkit.ui": ["*.js"],
    }
    assert (ROOT / "controlkit" / "py.typed").is_file()


def test_dependencies_have_floors_and_no_ceilings_and_are_explained() -> None:
    project = PYPROJECT["project"]
    extras = project["optional-dependencies"]
    every = [*project["dependencies"], *(entry for entries in extras.values() for entry in entries)]
    explained = (ROOT / "docs" / "dependencies.md").read_text()
    for entry in every:
        if entry.startswith("controlkit["):
            continue
        assert re.fullmatch(r"[a-z0-9-]+(\[[a-z]+\])?>=[0-9.]+", entry), entry
        name = re.split(r"[\[>]", entry)[0]
        assert f"`{name}`" in explained, f"docs/dependencies.md says nothing about {name}"


def test_configured_paths_exist() -> None:
    pyright = PYPROJECT["tool"]["pyright"]
    for entry in [
        *pyright["include"],
        *pyright["strict"],
        *PYPROJECT["tool"]["pytest"]["ini_options"]["testpaths"],
    ]:
        assert (ROOT / entry).exists(), entry


def test_version_and_changelog_agree() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    newest = re.search(r"^## \[?([0-9.]+)", changelog, re.MULTILINE)
    assert newest is not None
    assert newest.group(1) == ck.__version__


# --- sizes and words ----------------------------------------------------------------------------------


def tracked_files() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.decode().split("\0") if name]


def test_no_source_file_is_too_long() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in tracked_files()
        if path.suffix == ".py" and path.is_file() and (lines := path.read_bytes().count(b"\n")) > MAX_LINES
    }
    assert not long, f"more than {MAX_LINES} lines"


def test_no_file_names_a_place_on_some_machine() -> None:
    place = re.compile(rb"(?<![\w.~-])/(?:work|root|home/\w+|opt|Users)/[\w.]")
    texts = {".py", ".md", ".toml", ".json", ".yaml", ".yml", ".txt", ""}
    named = [
        str(path.relative_to(ROOT))
        for path in tracked_files()
        if path.is_file()
        and not path.is_symlink()
        and path.suffix in texts
        and place.search(path.read_bytes())
    ]
    assert not named


def test_the_command_of_continuous_integration_runs_the_tests_only() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = [line for line in script.read_text().splitlines() if line and not line.startswith("#")]
    assert lines[-1].split()[0] == "exec"
    assert lines[-1].endswith("make --no-print-directory test")


# --- imports ------------------------------------------------------------------------------------------

DIFFUSERS = ("hosts.diffusers", "embedded", "training", "recipes", "cli", "demo", "evaluation", "checkpoints")


def test_diffusers_is_imported_by_its_host_and_the_edges_only() -> None:
    allowed = tuple(f"controlkit.{name}" for name in DIFFUSERS)
    wrong = [
        name
        for name, path in MODULES.items()
        if not name.startswith(allowed)
        and any(target.split(".")[0] == "diffusers" and not typing for target, typing in imports(path))
    ]
    assert not wrong


def test_adapters_do_not_import_each_other() -> None:
    shared = {"blocks"}
    wrong: list[str] = []
    for name, path in MODULES.items():
        parts = name.split(".")
        if parts[:2] != ["controlkit", "adapters"] or len(parts) < 3:
            continue
        for target, _ in imports(path):
            other = target.split(".")
            if (
                other[:2] == ["controlkit", "adapters"]
                and len(other) > 2
                and other[2] not in {parts[2], *shared}
            ):
                wrong.append(f"{name} imports {target}")
    assert not wrong


def test_contracts_import_nothing_heavy() -> None:
    for name in ("contracts", "errors"):
        path = ROOT / "controlkit" / f"{name}.py"
        foreign = {target.split(".")[0] for target, _ in imports(path)} - set(sys.stdlib_module_names)
        assert foreign <= {"torch", "controlkit"}, name
        inside = {target for target, _ in imports(path) if target.startswith("controlkit.")}
        assert all(target.split(".")[1] in ("errors", "strength") for target in inside), name


def test_the_core_imports_no_particular_adapter_at_once() -> None:
    for name in ("engine", "attaching", "strength", "report", "module", "contracts"):
        path = ROOT / "controlkit" / f"{name}.py"
        assert not [target for target, _ in imports(path) if target.startswith("controlkit.adapters")], name


HEAVY = {"cv2", "transformers", "diffusers", "accelerate", "gradio", "ray", "controlnet_aux", "skimage"}
LAZY = (
    "controlkit.preprocessors",
    "controlkit.images",
    "controlkit.cli",
    "controlkit.demo",
    "controlkit.recipes",
)


def test_nothing_heavy_is_imported_before_it_is_used() -> None:
    wrong = {
        name: heavy
        for name, path in MODULES.items()
        if name.startswith(LAZY) and (heavy := top_level_imports(path) & HEAVY)
    }
    assert not wrong


def loaded_by(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after running this code."""
    code += "; import sys, json; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_controlkit_imports_nothing_heavy() -> None:
    loaded = loaded_by("import controlkit")
    assert not loaded & (HEAVY | {"torch", "numpy", "PIL", "pydantic", "typer", "rich", "huggingface_hub"})


def test_help_needs_no_torch() -> None:
    loaded = loaded_by("from controlkit.cli import main; main(['generate', '--help'])")
    assert not loaded & (HEAVY | {"torch", "numpy", "PIL"})


def test_importing_controlkit_is_quick() -> None:
    """Less than 0.3 s beside the interpreter's own start; the best of five, as machines are busy."""
    code = "import time; start = time.process_time(); import controlkit; print(time.process_time() - start)"
    times = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        for _ in range(5)
    ]
    assert min(times) < 0.3


# --- the public surface -------------------------------------------------------------------------------


def test_the_public_names_are_written_the_same_three_times() -> None:
    tree = ast.parse((ROOT / "controlkit" / "__init__.py").read_text())
    for_checkers: dict[str, str] = {}
    at_once: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.If):
            for inner in node.body:
                assert isinstance(inner, ast.ImportFrom)
                for alias in inner.names:
                    for_checkers[alias.asname or alias.name] = str(inner.module)
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module == "controlkit.errors":
            at_once = {alias.name for alias in node.names}
    lazy = {**vars(ck)["_HOMES"], **dict.fromkeys(vars(ck)["_MODULES"], "controlkit")}
    assert for_checkers == lazy
    assert sorted(ck.__all__) == sorted({*lazy, *at_once, "__version__"})


def test_every_public_name_is_there_and_documented() -> None:
    for name in ck.__all__:
        value = getattr(ck, name)
        assert name == "__version__" or (value.__doc__ and len(value.__doc__) > 20), name


def test_every_error_is_public() -> None:
    errors = importlib.import_module("controlkit.errors")
    named = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, Exception) and not name.startswith("_")
    }
    assert named <= set(ck.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="controlnets"):
        _ = ck.controlnets  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("name", sorted(MODULES))
def test_every_module_says_what_it_is_for(name: str) -> None:
    assert ast.get_docstring(ast.parse(MODULES[name].read_text())), f"{name} has no docstring"
