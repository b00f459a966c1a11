"""Throw bad files at the one door for weights, and count what becomes of them.

    python tools/fuzz_door.py mutate --count 10000            # changed files of every format, a table
    python tools/fuzz_door.py guided --seconds 1800 --corpus FOLDER   # guided by coverage; needs atheris

`docs/fuzzing.md` has the figures of the last runs.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import resource
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
STEM = "diffusion_pytorch_model"
SECONDS = 10.0
"""Of CPU, instrumented, that no input may take."""
HEADS = ({"num_heads": 2}, {"attention_head_dim": 2})
"""What shapes do not tell, by the names of the original and of diffusers."""


def mutate(count: int, seed: int) -> int:
    """Changed files of every format; prints a table."""
    from tests.checkpoints.judging import judge
    from tests.checkpoints.mutations import SUFFIXES

    print(
        "| format | files | refused | accepted unchanged | accepted altered | slowest, CPU s | more memory |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    kinds: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for made in SUFFIXES:
            tally = judge(made, count, Path(folder), seed)
            kinds[made] = tally.refused
            print(
                f"| {made} | {tally.total:,} | {sum(tally.refused.values()):,} | {tally.unchanged:,} | "
                f"{tally.altered:,} | {tally.slowest[0]:.2f} | {tally.grown} MB |",
                flush=True,
            )
            print(
                f"slowest: {tally.slowest[1]}; caught late: {dict(tally.late)}", file=sys.stderr, flush=True
            )
    codes = sorted({code for refused in kinds.values() for code in refused})
    print("\n| refused with |", " | ".join(kinds), "|\n| --- |", " | ".join("---" for _ in kinds), "|")
    for code in codes:
        print(f"| {code} |", " | ".join(f"{refused[code]:,}" for refused in kinds.values()), "|")
    return 0


class Door:
    """What a fuzzer calls: the first byte of its input says how the rest becomes a checkpoint."""

    def __init__(self, folder: Path) -> None:
        from controlkit.checkpoints import inspect, load
        from controlkit.checkpoints.unet import unet
        from tests.checkpoints.files import adapter, in_zip

        self.folder, self.in_zip = folder, in_zip
        self.inspect, self.load, self.unet = inspect, load, unet
        self.ways: tuple[Callable[[bytes], Any], ...] = (
            self.safetensors,
            self.pickle,
            self.header,
            self.zipped,
            self.legacy,
            self.config,
            self.index,
            self.names,
            self.base,
        )
        self.whole = adapter().save(folder / "whole")
        self.counts: Counter[str] = Counter()
        self.faults: dict[str, bytes] = {}
        self.calls = 0
        self.slowest = 0.0

    def __call__(self, data: bytes) -> None:
        """One input; an exception that is none of ours is kept, not raised, and so is a hang."""
        self.calls += 1
        if not data:
            return
        began = time.process_time()
        self._tried(data)
        if (took := time.process_time() - began) > self.slowest:
            self.slowest = took
        if took > SECONDS:
            self._keep(f"{took:.1f} s of CPU", data)

    def _keep(self, key: str, data: bytes) -> None:
        if key not in self.faults:
            self.faults[key] = data
            print(f"FAULT {key}"[:300], file=sys.stderr, flush=True)

    def _tried(self, data: bytes) -> None:
        from controlkit.errors import ControlKitError

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                way = self.ways[data[0] % len(self.ways)]
                source = way(data[1:])
                if way == self.base:
                    old = any("input_blocks." in name for name in source)
                    self.unet(source, HEADS[0 if old else 1])
                    self.counts["a U-Net"] += 1
                    return
                self.inspect(source)
                self.counts["recognised"] += 1
                self.load(source)
                self.counts["loaded"] += 1
            except ControlKitError as error:
                self.counts[error.code] += 1
                if len(str(error)) > 600 or not str(error).isprintable():
                    self._keep("a message that is too long or not printable", data)
            except Exception as error:
                place = traceback.extract_tb(error.__traceback__)[-1]
                self._keep(f"{type(error).__name__} {Path(place.filename).name}:{place.lineno}", data)

    def _written(self, name: str, content: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content)
        return path

    def safetensors(self, data: bytes) -> Path:
        """The bytes of a safetensors file."""
        return self._written("x.safetensors", data)

    def pickle(self, data: bytes) -> Path:
        """The bytes of a file under a pickle's name."""
        return self._written("x.pth", data)

    def header(self, data: bytes) -> Path:
        """The text of a header, before as many zeros as two bytes say."""
        zeros = bytes(int.from_bytes(data[:2], "little"))
        return self._written("x.safetensors", len(data[2:]).to_bytes(8, "little") + data[2:] + zeros)

    def zipped(self, data: bytes) -> Path:
        """The pickle in an archive whose checksums are right, with some storages."""
        return self._written("x.pth", self.in_zip(data, {str(n): bytes(4 << n) for n in range(12)}))

    def legacy(self, data: bytes) -> Path:
        """What follows the two pickles that every old file begins with."""
        begin = b"\x80\2\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\2M\xe9\3."
        return self._written("x.bin", begin + data)

    def config(self, data: bytes) -> Path:
        """The text of config.json beside whole weights."""
        self._written("whole/config.json", data)
        return self.whole

    def index(self, data: bytes) -> Path:
        """The text of a shard index, beside the weights it may name."""
        place = self.folder / "sharded"
        if not place.exists():
            place.mkdir()
            (place / "a.safetensors").write_bytes((self.whole / f"{STEM}.safetensors").read_bytes())
        self._written(f"sharded/{STEM}.safetensors.index.json", data)
        return place

    def base(self, data: bytes) -> dict[str, Any]:
        """As `names`, for `unet`."""
        return self.names(data)

    def names(self, data: bytes) -> dict[str, Any]:
        """Tensors without data, one line each: a name, and its lengths after a tab."""
        import torch

        tensors: dict[str, Any] = {}
        for line in data.decode("utf-8", "replace").split("\n")[:1000]:
            name, _, text = line.partition("\t")
            lengths = [int(part) for part in re.findall(r"\d{1,6}", text)[:5]]
            if math.prod(lengths) < 1 << 60:  # more is no tensor, on any device
                tensors[name] = torch.empty(lengths, device="meta")
        return tensors


def corpus_of(folder: Path) -> None:
    """The inputs to begin with: every way, from every seed."""
    from tests.checkpoints.files import adapter
    from tests.checkpoints.mutations import file_of, seeds

    folder.mkdir(parents=True, exist_ok=True)
    made: list[bytes] = []
    for name, tensors in seeds().items():
        few = {key: tensor.flatten()[:4] for key, tensor in list(tensors.items())[:6]}
        small = {key: tensor for key, tensor in tensors.items()} if "t2i" in name else few
        content = file_of(small, "safetensors")
        length = int.from_bytes(content[:8], "little")
        made += [bytes([0]) + content, bytes([2, 0, 16]) + content[8 : 8 + length]]
        made += [bytes([1]) + file_of(few, "zip"), bytes([1]) + file_of(few, "legacy")]
        data = file_of(few, "zip")
        begin = data.index(b"\x80\2")
        made += [bytes([3]) + data[begin : data.index(b".PK", begin) + 1] if b".PK" in data else b""]
        old = file_of(few, "legacy")
        made.append(bytes([4]) + old[old.index(b"\x80\2}") :])
        lines = [f"{key}\t{' '.join(map(str, tensor.shape))}" for key, tensor in tensors.items()]
        made.append(bytes([7]) + "\n".join(lines).encode())
    for widths in ((32, 32, 64, 64), (32, 32)):
        for state in unet_states(widths):
            rows = [f"{key}\t{' '.join(map(str, tensor.shape))}" for key, tensor in state.items()]
            made.append(bytes([8]) + "\n".join(rows).encode())
    made.append(bytes([5]) + json.dumps(adapter().config_entries()).encode())
    listed = dict.fromkeys(adapter().state_dict(), "a.safetensors")
    made.append(bytes([6]) + json.dumps({"weight_map": listed}).encode())
    for other in (b"<html>", b"version https://git-lfs", b"GGUF", b"\x81\xa6params", b"\x08\7\x12\7pytorch"):
        made.append(bytes([1]) + other)
    for manifest in sorted((ROOT / "tests").rglob("manifests/*.json")):
        entries = json.loads(manifest.read_text())
        entries = entries.get("keys", entries)
        if isinstance(entries, dict):
            rows = [f"{key}\t{' '.join(map(str, _shape(value)))}" for key, value in entries.items()]
            made.append(bytes([7]) + "\n".join(rows[:900]).encode())
    for number, content in enumerate(made):
        (folder / f"seed{number:03}").write_bytes(content)


def unet_states(widths: tuple[int, ...]) -> list[dict[str, Any]]:
    """A U-Net's weights by both sets of names."""
    from controlkit.checkpoints.ldm import ldm_name
    from tests import tiny

    down = (*["CrossAttnDownBlock2D"] * (len(widths) - 1), "DownBlock2D")
    up = ("UpBlock2D", *["CrossAttnUpBlock2D"] * (len(widths) - 1))
    kinds = {"down_block_types": down, "up_block_types": up}
    model = tiny.unet("sd1", block_out_channels=widths, norm_num_groups=32, **kinds)
    state, layers = model.state_dict(), model.config.layers_per_block
    attends = ["CrossAttn" in kind for kind in model.config.up_block_types]
    named = {ldm_name(key, layers=layers, up_attends=attends): tensor for key, tensor in state.items()}
    old = {f"model.diffusion_model.{key}": tensor for key, tensor in named.items() if key is not None}
    return [dict(state), old]


def _shape(value: Any) -> list[Any]:
    if isinstance(value, dict):
        value = value.get("shape", [])
    return value if isinstance(value, list) else []


def guided(seconds: int, corpus: Path, most: int) -> int:
    """Guided by coverage, in a process of its own, which libFuzzer ends when it is done; prints figures."""
    if not any(corpus.glob("*")):
        corpus_of(corpus)
    counts = corpus.parent / f"{corpus.name}-counts.json"
    command = [sys.executable, __file__, "child", "--seconds", str(seconds), "--corpus", str(corpus)]
    began = time.monotonic()
    done = subprocess.run([*command, "--max-len", str(most)], check=False)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    told = json.loads(counts.read_text())
    print(f"\nCPU minutes: {(used.ru_utime + used.ru_stime) / 60:.1f}")
    print(f"wall minutes: {(time.monotonic() - began) / 60:.1f}")
    print(f"peak memory: {used.ru_maxrss // 1024} MB")
    print(f"inputs: {told['inputs']:,}; slowest: {told['slowest']:.2f} s of CPU")
    print(f"outcomes: {told['outcomes']}")
    print(f"untyped exceptions, hangs, bad messages: {len(told['faults'])} {told['faults']}")
    print(f"exit status of the fuzzer (0: no crash, no hang): {done.returncode}")
    return done.returncode or int(bool(told["faults"]))


def child(seconds: int, corpus: Path, most: int) -> int:
    """The door's own code instrumented, and the parsers of the standard library below it."""
    import atheris

    inside = ["controlkit.checkpoints", "controlkit.adapters", "controlkit.errors", "zipfile", "pickletools"]
    with atheris.instrument_imports(include=inside):
        import pickletools
        import zipfile

        from controlkit.checkpoints.layouts import LAYOUTS

        readers = [layout.load_reader() for layout in LAYOUTS if layout.reader is not None]
    print(f"instrumented: {pickletools.__name__}, {zipfile.__name__}, {len(readers)} readers")
    counts = corpus.parent / f"{corpus.name}-counts.json"
    with tempfile.TemporaryDirectory() as folder:
        door = Door(Path(folder))

        def told() -> None:
            found = {"outcomes": dict(door.counts.most_common()), "faults": list(door.faults)}
            counts.write_text(json.dumps({"inputs": door.calls, "slowest": door.slowest, **found}))

        for seed in sorted(corpus.iterdir()):  # imports, which take longer than any input may
            door(seed.read_bytes())
        door.counts.clear()
        door.calls, door.slowest = 0, 0.0
        told()

        def one(data: bytes) -> None:
            known = len(door.faults)
            door(data)
            if len(door.faults) > known:
                fault = corpus.parent / f"{corpus.name}-fault-{known}"
                fault.write_bytes(list(door.faults.values())[-1])
            if door.calls % 500 == 0 or len(door.faults) > known:
                told()

        options = [f"-max_total_time={seconds}", "-timeout=60", "-rss_limit_mb=4096", f"-max_len={most}"]
        options += ["-print_final_stats=1", f"-artifact_prefix={corpus.parent}/"]
        atheris.Setup([sys.argv[0], *options, str(corpus)], one)
        atheris.Fuzz()
    return 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    changed = commands.add_parser("mutate", help="changed files of every format")
    changed.add_argument("--count", type=int, default=10_000, help="files of each format")
    changed.add_argument("--seed", type=int, default=0)
    for name, words in {"guided": "guided by coverage", "child": "what guided starts"}.items():
        fuzz = commands.add_parser(name, help=words)
        fuzz.add_argument("--seconds", type=int, default=1800)
        fuzz.add_argument("--corpus", type=Path, required=True, help="a folder outside the project; kept")
        fuzz.add_argument("--max-len", type=int, default=1 << 16)
    given = parser.parse_args()
    if given.command == "mutate":
        return mutate(given.count, given.seed)
    return (guided if given.command == "guided" else child)(given.seconds, given.corpus, given.max_len)


if __name__ == "__main__":
    sys.exit(main())
