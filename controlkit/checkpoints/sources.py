"""Where a checkpoint's files are: from a folder, a file, a hub id or a state dict to open files and a config.

The network is in `hub.py`; what the files hold is for `formats.py`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from controlkit.checkpoints import hub
from controlkit.checkpoints.sniff import open_regular
from controlkit.checkpoints.weights import HeaderOnly, InMemory, Weights, open_weights
from controlkit.errors import CheckpointCorrupt, ConfigError, ControlKitError, FileError, ParameterError

_STEM = "diffusion_pytorch_model"
_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt")
_MAX_JSON = 4 << 20
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass
class Opened:
    """A checkpoint ready to be read.

    Args:
        weights: Its tensors.
        config: Its config.json; None where there is none.
        what: Its name, for errors and reports.
        notes: What was unusual about finding it.
        sha256: What the hub says the weight file's digest is, where it does.
    """

    weights: Weights
    config: dict[str, Any] | None
    what: str
    notes: list[str] = field(default_factory=list[str])
    sha256: str | None = None


@contextmanager
def open_source(
    source: object,
    *,
    subfolder: str | None = None,
    weight_name: str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    allow_pickle: bool = False,
    header_only: bool = False,
) -> Iterator[Opened]:
    """Open whatever a user names; files stay open inside the ``with``.

    With ``header_only`` a safetensors file on the hub is not downloaded; its weights cannot be read then.

    Raises:
        FileError: There is no such file, folder or repository.
        ConfigError: config.json or a shard index is malformed.
        CheckpointError: See `open_weights`.
    """
    if isinstance(source, Mapping):
        yield Opened(InMemory(source, "state dict"), None, "state dict")
        return
    if not isinstance(source, str | os.PathLike):
        raise ParameterError(
            "source",
            found=f"a {type(source).__name__}",
            expected="a hub id, a folder, a file or a state dict",
            fix="For a module, give module.state_dict().",
        )
    what = os.fsdecode(source)
    try:
        with ExitStack() as stack:
            found = _locate(what, subfolder, weight_name, revision, local_files_only, header_only)
            if found.tensors is not None:
                config = found.folder / (subfolder or "") / "config.json" if found.folder.name else None
                yield Opened(HeaderOnly(found.tensors), _read_config(config), what)
                return
            paths, config = _paths(found.folder, subfolder, weight_name, what)
            entries = _read_config(config)
            weights = open_weights(paths, stack, allow_pickle=allow_pickle)
            yield Opened(weights, entries, what, found.notes, found.sha256 if len(paths) == 1 else None)
    except OSError as error:
        if isinstance(error, ControlKitError):
            raise
        raise FileError(
            what,
            found=(error.strerror or str(error)).lower(),
            expected="files that can be read",
            fix="Check the disk and the permissions.",
            code="CK-L35",
        ) from error


def _read_config(path: Path | None) -> dict[str, Any] | None:
    return read_json(path, path.name) if path is not None and path.is_file() else None


def _locate(
    what: str,
    subfolder: str | None,
    weight_name: str | None,
    revision: str | None,
    local_files_only: bool,
    header_only: bool,
) -> hub.Fetched:
    """The file or folder on this machine; fetched where ``what`` is a hub id."""
    path = Path(os.path.expanduser(what))
    try:
        if os.path.lexists(path):
            return hub.Fetched(path)
    except ValueError:  # a zero byte in the name
        pass
    if not _HUB_ID.fullmatch(what) or path.suffix in _SUFFIXES:
        raise FileError(
            what,
            found="no such file or folder, and not a hub id",
            expected="an existing path, or owner/name",
            fix="Check the spelling.",
            code="CK-L35",
        )
    return hub.fetch(
        what,
        lambda names: _choose(names, weight_name, f"{what} on the hub", subfolder),
        revision=revision,
        local_files_only=local_files_only,
        header_only=header_only,
    )


def _paths(
    place: Path, subfolder: str | None, weight_name: str | None, what: str
) -> tuple[list[Path], Path | None]:
    """The weight files, and where their config would be."""
    if not place.is_dir():
        return [place], place.with_name("config.json") if place.name.startswith(_STEM) else None
    folder = place / (subfolder or "")
    if not folder.is_dir() or ".." in Path(subfolder or "").parts:
        raise FileError(what, found=f"no folder {subfolder!r} in it", fix="Check subfolder.", code="CK-L35")
    names = {entry.name for entry in folder.iterdir()}
    return _files(folder, _choose(names, weight_name, what), what), folder / "config.json"


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read a small JSON object.

    Raises:
        ConfigError: It is none.
        FileError: It cannot be read.
    """
    file, size = open_regular(path)
    with file:
        if size > _MAX_JSON:
            raise ConfigError(what, found=f"{size} bytes", expected=f"at most {_MAX_JSON}", code="CK-L30")
        raw = file.read() or b""
    try:
        entries = json.loads(raw.decode("utf-8-sig"))
        if not isinstance(entries, dict):
            raise ValueError(f"it is a {type(entries).__name__}, not an object")
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            what,
            found=f"malformed JSON: {error}"[:200],
            expected="a JSON object",
            fix="Download it again, or give config= and remove the file.",
            code="CK-L30",
        ) from None
    return entries


def _choose(names: Collection[str], weight_name: str | None, what: str, subfolder: str | None = None) -> str:
    """The weight file, or shard index, among the names of a folder; full precision and safetensors first."""
    start = f"{subfolder.strip('/')}/" if subfolder else ""
    here = sorted(
        name[len(start) :] for name in names if name.startswith(start) and "/" not in name[len(start) :]
    )
    if weight_name is not None:
        if weight_name in here:
            return start + weight_name
        found = f"no file {weight_name!r}"
    else:
        for ending in _SUFFIXES:
            index = [f"{_STEM}{ending}", f"{_STEM}{ending}.index.json"]
            plain = [name for name in index if name in here]
            variants = [name for name in here if re.fullmatch(rf"{_STEM}\.[\w-]+{re.escape(ending)}", name)]
            variants += [
                n for n in here if re.fullmatch(rf"{_STEM}{re.escape(ending)}\.index\.[\w-]+\.json", n)
            ]
            variants = [name for name in variants if not re.search(r"-\d+-of-\d+", name)]
            only = [name for name in here if name.endswith(ending)]
            chosen = plain or variants or (only if len(only) == 1 else [])
            if chosen:
                return start + chosen[0]
        if "model_index.json" in here and not subfolder:
            found = "a whole pipeline"
        else:
            found = f"no weight file, or several, among {', '.join(here[:6]) or 'no files'}"
    raise FileError(
        what,
        found=found,
        expected=f"{_STEM}.safetensors",
        fix="Name the file with weight_name, or its folder with subfolder.",
        code="CK-L35",
    )


def _files(folder: Path, name: str, what: str) -> list[Path]:
    """The file itself, or the shards that an index lists."""
    if not name.endswith(".json"):
        return [folder / name]
    listed = read_json(folder / name, name).get("weight_map")
    if (
        not isinstance(listed, dict)
        or not listed
        or not all(isinstance(part, str) for part in listed.values())
    ):
        raise ConfigError(name, found="no weight_map", expected="names of shards", code="CK-L33")
    roots = [folder.resolve()]
    # In the hub's cache every file of a snapshot is a link to a blob of the same repository.
    roots += [parent.parent / "blobs" for parent in roots[0].parents if parent.name == "snapshots"]
    roots += [parent.parent / "blobs" for parent in folder.absolute().parents if parent.name == "snapshots"]
    paths: list[Path] = []
    for part in sorted(set(listed.values())):
        path = folder / part
        plain = part not in ("", ".", "..") and not re.search(r"[/\\\0:]", part)
        if not plain or not any(path.resolve().is_relative_to(root) for root in roots):
            raise CheckpointCorrupt(
                f"{what}: {name}",
                found=f"the shard {part!r:.80}, which lies outside",
                expected="names of files beside the index",
                fix="Do not use this folder: it points elsewhere.",
                code="CK-L33",
            )
        if not path.is_file():
            raise FileError(
                f"{what}: {name}",
                found=f"no shard {part!r:.80}",
                expected=f"all {len(set(listed.values()))} shards",
                fix="Download the missing shard.",
                code="CK-L33",
            )
        paths.append(path)
    return paths
