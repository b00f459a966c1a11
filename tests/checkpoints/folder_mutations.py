"""What becomes of folders whose config.json or shard index was changed with knowledge of its structure."""

from __future__ import annotations

import json
import random
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch

from controlkit.errors import ControlKitError
from tests.checkpoints.files import adapter
from tests.checkpoints.judging import Tally, check_error, check_from_file, tried
from tests.checkpoints.mutations import ODD_NUMBERS, cut, extend, file_of, flip, splice

Part = Literal["config", "index"]
PARTS: tuple[Part, ...] = ("config", "index")
STEM = "diffusion_pytorch_model"
SHARDS = ("one.safetensors", "two.safetensors")
VALUES: tuple[Any, ...] = (
    *ODD_NUMBERS, None, True, "", "x", "../one.safetensors", "two.safetensors", "/etc/passwd", [], {}, [32],
    [1 << 40] * 4, ["a"], 0.5, -0.0, 1e308, "a" * 5000, [[]], {"a": {}}, "T2IAdapter", "ControlNetModel",
)  # fmt: skip


def value(content: bytes, chance: random.Random) -> bytes:
    """One value replaced, at any depth."""
    listed: Any = json.loads(content)
    place: Any = listed
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = chance.choice(keys)
        inner = place[key]
        if not isinstance(inner, dict | list) or not inner or chance.random() < 0.3:
            place[key] = chance.choice(VALUES)
            return json.dumps(listed).encode()
        place = inner


def key(content: bytes, chance: random.Random) -> bytes:
    """One name left out, renamed, added or doubled."""
    listed: dict[str, Any] = json.loads(content)
    inner = chance.choice([listed, *[part for part in listed.values() if isinstance(part, dict)]])
    name = chance.choice(list(inner))
    kind = chance.randrange(4)
    if kind == 0:
        inner.pop(name)
    elif kind == 1:
        inner[chance.choice((name + "x", "", name.upper(), "a" * 2000, "\0"))] = inner.pop(name)
    elif kind == 2:
        inner[chance.choice(("extra", "_class_name", "num_heads", "metadata"))] = chance.choice(VALUES)
    text = json.dumps(listed).encode()
    return text.replace(b"{", b'{"' + name.encode() + b'": 1, ', 1) if kind == 3 else text


def letters(content: bytes, chance: random.Random) -> bytes:
    """Characters of the text."""
    place = chance.randrange(len(content))
    part = chance.choice((b'"', b"{", b"}", b"[", b"]", b",", b"9" * 400, b"-", b"NaN", b"\xff", b"\\u0000"))
    return content[:place] + part + content[place + chance.randrange(4) :]


MUTATORS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    *[value] * 5, *[key] * 4, *[letters] * 2, flip, cut, extend, splice,
)  # fmt: skip


def whole_folder(part: Part, folder: Path) -> tuple[Path, bytes]:
    """A folder that loads, and the file in it that is to be changed, with its content."""
    module = adapter()
    target = module.save(folder / part)
    if part == "config":
        return target / "config.json", (target / "config.json").read_bytes()
    state = module.state_dict()
    (target / f"{STEM}.safetensors").unlink()
    names = list(state)
    halves = (names[: len(names) // 2], names[len(names) // 2 :])
    for shard, half in zip(SHARDS, halves, strict=True):
        (target / shard).write_bytes(file_of({name: state[name] for name in half}, "safetensors"))
    weights = {name: shard for shard, half in zip(SHARDS, halves, strict=True) for name in half}
    index = target / f"{STEM}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weights}))
    return index, index.read_bytes()


def judge_folders(part: Part, count: int, folder: Path, seed: int = 0) -> Tally:
    """As `judging.judge`, for folders.

    Raises:
        Fault: One of them did not hold; its label makes the file again.
    """
    tally = Tally()
    path, whole = whole_folder(part, folder)
    content = b"".join(each.read_bytes() for each in sorted(path.parent.glob("*.safetensors")))
    before = adapter().state_dict()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(count):
        chance = random.Random(f"{part} {seed} {number}")
        text, done = whole, []
        while text == whole or chance.random() < 0.15:
            mutate = chance.choice(MUTATORS)
            try:
                text = mutate(text, chance)
            except Exception:  # a structure that an earlier mutation has destroyed
                text = flip(text or b"{}", chance)
            done.append(mutate.__name__)
        label = f"{part} {number}: {', '.join(done)}"
        path.write_bytes(text)
        began = time.process_time()
        result = tried(path.parent, label, "")
        tally.slowest = max(tally.slowest, (time.process_time() - began, label))
        if isinstance(result, ControlKitError):
            check_error(result, label)
            tally.refused[result.code] += 1
            continue
        state = result.state_dict()
        check_from_file(state, content, label)
        same = state.keys() == before.keys() and all(torch.equal(state[each], before[each]) for each in state)
        tally.unchanged += int(same)
        tally.altered += int(not same)
    tally.grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) // 1024
    return tally
