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
from controlkit.errors import (
    CheckpointCorrupt,
    ConfigError,
    ControlKitError,
    FileError,
    ParameterError,
    ShardError,
)

_STEM = "diffusion_pytorch_model"
_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt")
_MAX_JSON = 4 << 20
_NUMBER = re.compile(r"-\d+-of-\d+")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass
class Opened:
    """A checkpoint ready to be read.

    Args:
        weights: Its tensors.
        config: Its config.json; None where there is none.
        what: Its name, for errors and reports.
        notes: What was unusual about finding it.
        sha256: What the digest of the weight file must be, where the caller or the hub says so.
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
    sha256: str | None = None,
) -> Iterator[Opened]:
    """Open whatever a user names; files stay open inside the ``with``.

    With ``header_only`` a safetensors file on the hub is not downloaded; its weights cannot be read then.
    With ``sha256`` a pickle with another digest is not unpickled; other files are for `load` to compare.

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
            paths, config, listed = _paths(found.folder, subfolder, weight_name, what)
            entries = _read_config(config)
            expected = sha256 or (found.sha256 if len(paths) == 1 else None)
            try:
                weights = open_weights(paths, stack, allow_pickle=allow_pickle, sha256=expected)
            except CheckpointCorrupt as error:
                raise _with_digest(error, expected) from None
            _check_index(paths, weights, listed)
            try:
                yield Opened(weights, entries, what, found.notes, expected)
            except CheckpointCorrupt as error:
                if error.code != "CK-L29" or sha256 is not None or not hub.discard(paths[0]):
                    raise
                fix = "It is not the file that the hub lists, and was removed from the cache: load it again."
                raise CheckpointCorrupt(
                    what, found=error.found, expected=error.expected, fix=fix, code=error.code
                ) from None
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


def _with_digest(error: CheckpointCorrupt, sha256: str | None) -> CheckpointCorrupt:
    """The same error, with what the whole file's digest would be."""
    if sha256 is None or sha256 in str(error):
        return error
    fix = f"{error.fix} The whole file has SHA-256 {sha256}."
    return CheckpointCorrupt(error.what, found=error.found, expected=error.expected, fix=fix, code=error.code)


def _check_index(paths: list[Path], weights: Weights, listed: Mapping[str, str]) -> None:
    """A shard index must list the tensors that its shards hold."""
    if not listed:
        return
    if different := sorted(listed.keys() ^ weights.shapes.keys()):
        name = different[0]
        raise ShardError(
            str(paths[0].parent),
            found=f"{name!r:.100}, which is only in the {'index' if name in listed else 'shards'}",
            expected=f"the tensors that the index lists, in its {len(paths)} shards",
            fix=f"Download {listed.get(name, 'all shards')!r:.100} and the index again.",
        )


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
    if not is_hub_id(what):
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


def is_hub_id(what: str) -> bool:
    """Whether a text that is no path here can be a repository's ``owner/name`` on the hub."""
    return bool(_HUB_ID.fullmatch(what)) and Path(what).suffix not in _SUFFIXES


def _paths(
    place: Path, subfolder: str | None, weight_name: str | None, what: str
) -> tuple[list[Path], Path | None, Mapping[str, str]]:
    """The weight files, where their config would be, and for shards the file of each tensor."""
    if not place.is_dir():
        return [place], place.with_name("config.json") if place.name.startswith(_STEM) else None, {}
    folder = place / (subfolder or "")
    if not folder.is_dir() or ".." in Path(subfolder or "").parts:
        raise FileError(what, found=f"no folder {subfolder!r} in it", fix="Check subfolder.", code="CK-L35")
    names = {entry.name for entry in folder.iterdir()}
    name = _choose(names, weight_name, what)
    if not name.endswith(".json"):
        return [folder / name], folder / "config.json", {}
    listed = _read_index(folder / name)
    return _shards(folder, name, listed, what), folder / "config.json", listed


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


def _read_index(path: Path) -> dict[str, str]:
    listed = read_json(path, path.name).get("weight_map")
    is_map = isinstance(listed, dict) and all(isinstance(part, str) for part in listed.values())
    if not is_map or not listed:
        raise ConfigError(path.name, found="no weight_map", expected="names of shards", code="CK-L33")
    return listed


def _shards(folder: Path, index: str, listed: Mapping[str, str], what: str) -> list[Path]:
    """The shards that an index lists: all there, none elsewhere, and no other of the same set."""
    roots = [folder.resolve()]
    # In the hub's cache every file of a snapshot is a link to a blob of the same repository.
    roots += [parent.parent / "blobs" for parent in roots[0].parents if parent.name == "snapshots"]
    roots += [parent.parent / "blobs" for parent in folder.absolute().parents if parent.name == "snapshots"]
    paths: list[Path] = []
    for part in sorted(set(listed.values())):
        path = folder / part
        plain = part not in ("", ".", "..") and not re.search(r"[/\\\0:]", part)
        if not plain or not any(path.resolve().is_relative_to(root) for root in roots):
            raise ShardError(
                f"{what}: {index}",
                found=f"the shard {part!r:.80}, which lies outside",
                expected="names of files beside the index",
                fix="Do not use this folder: it points elsewhere.",
            )
        if not path.is_file():
            raise ShardError(
                f"{what}: {index}",
                found=f"no shard {part!r:.80}",
                expected=f"all {len(set(listed.values()))} shards",
                fix="Download the missing shard.",
            )
        paths.append(path)
    sets = {_NUMBER.sub("", path.name) for path in paths if _NUMBER.search(path.name)}
    for entry in sorted(folder.iterdir()):
        if entry not in paths and _NUMBER.search(entry.name) and _NUMBER.sub("", entry.name) in sets:
            raise ShardError(
                f"{what}: {index}",
                found=f"the shard {entry.name!r:.80}, which it does not list",
                expected=f"its {len(paths)} shards and no other of the same name",
                fix="Remove what is left of another version, or download the index again.",
            )
    return paths
