"""A web UI that loads this repository: nothing is fetched, installed or run, and diffusers is not imported.

Each is loaded in a process of its own, against stand-ins, under an audit hook that ends it at the first
connection, look-up of a name, or program. What a web UI has loaded before us (torch, numpy, Pillow) is there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PYTHONS = [sys.executable, *filter(None, os.environ.get("CONTROLKIT_HOST_PYTHONS", "").split(os.pathsep))]
"""This interpreter, and others where the environment names some: with the versions that hosts have."""

WATCHED = """
import importlib, importlib.util, os, sys
from types import ModuleType, SimpleNamespace
from unittest.mock import MagicMock
import numpy, PIL.Image, pytest, safetensors.torch, torch

ROOT, CLONE, NAME = sys.argv[1:]
EVENTS = {
    "socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.bind", "urllib.Request",
    "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty",
}

def forbid(event, args):
    if event in EVENTS:  # no exception, which could be caught
        print(f"{event} {args}", file=sys.stderr, flush=True)
        os._exit(3)

def load(file, name, package=False):
    places = {"submodule_search_locations": [CLONE]} if package else {}
    spec = importlib.util.spec_from_file_location(name, f"{CLONE}/{file}", **places)
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
"""

COMFY = """
sys.path.append(ROOT)
from tests.hosts.comfy import stand_in
stand_in.install(pytest.MonkeyPatch())
forget()
sys.addaudithook(forbid)
pack = load("__init__.py", CLONE.replace(".", "_x_"), package=True)
for kind in pack.NODE_CLASS_MAPPINGS.values():
    kind.INPUT_TYPES()
print(len(pack.NODE_CLASS_MAPPINGS))
"""

INVOKE = """
sys.path.append(ROOT)
from tests.hosts.invoke import stand_in
stand_in.install(pytest.MonkeyPatch())
forget()
sys.addaudithook(forbid)
load("__init__.py", NAME, package=True)
for kind in stand_in.REGISTERED.values():
    kind.model_json_schema()
print(len(stand_in.REGISTERED))
"""

WEBUI = """
class Script:
    pass

def subscribe(callback):
    pass

for name, entries in {
    "modules": {},
    "modules.scripts": {"Script": Script, "AlwaysVisible": object()},
    "modules.script_callbacks": {"on_cfg_denoiser": subscribe, "on_script_unloaded": subscribe},
    "modules.shared": {"cmd_opts": SimpleNamespace(controlkit_dir=None)},
    "modules.paths": {"models_path": CLONE + "/models"},
}.items():
    sys.modules[name] = ModuleType(name)
    vars(sys.modules[name]).update(entries)
sys.modules["modules"].__path__ = []
sys.modules["gradio"] = MagicMock()
sys.addaudithook(forbid)
load("preload.py", "preload").preload(MagicMock())
sys.path.insert(0, CLONE)
module = load("scripts/controlkit_webui.py", "controlkit_webui.py")
del sys.path[0]
panel = module.ControlKit()
assert panel.title() == "ControlKit"
print(len(panel.ui(False)))
"""

FORGET = """
def forget():
    # What the stand-ins imported of ours is to be imported again, under the hook.
    for name in [name for name in sys.modules if name.partition(".")[0] == "controlkit"]:
        del sys.modules[name]
    sys.path.remove(ROOT)
"""

LEAST = {"comfy": 40, "invoke": 40, "webui": 40}
"""Nodes, or fields of the panel: that many at least, so that it is seen that they were made."""

AFTER = """
assert sys.modules["controlkit"].__file__ == CLONE + "/controlkit/__init__.py"
assert not {"diffusers", "transformers"} & set(sys.modules)
"""


CASES = [(host, python) for host in ("comfy", "webui") for python in PYTHONS]
CASES.append(("invoke", sys.executable))  # InvokeAI has the versions that its own tests run with


@pytest.mark.parametrize(("host", "python"), CASES)
@pytest.mark.parametrize("name", ["controlkit", "sd-controlkit"])
def test_loading_fetches_installs_and_runs_nothing(host: str, name: str, python: str, tmp_path: Path) -> None:
    clone, elsewhere = tmp_path / "packs" / name, tmp_path / "host"
    clone.mkdir(parents=True)
    elsewhere.mkdir()
    for entry in ("__init__.py", "preload.py"):
        shutil.copy(ROOT / entry, clone)
    for entry in ("scripts", "controlkit", "adapters", "preprocessors"):
        (clone / entry).symlink_to(ROOT / entry)
    script = {"comfy": COMFY, "invoke": INVOKE, "webui": WEBUI}[host]
    done = subprocess.run(
        [python, "-c", WATCHED + FORGET + script + AFTER, str(ROOT), str(clone), name],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-1500:]
    assert int(done.stdout) >= LEAST[host]
