"""Fetching from the Hugging Face hub: one commit, only the files that are needed, the cache when offline."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from controlkit.errors import FileError, MissingExtra


@dataclass
class Fetched:
    """A snapshot in the local cache, or what was there already.

    Args:
        folder: Its root, or a single file; a subfolder lies inside.
        notes: Remarks, such as that the cache was used.
        sha256: The weight file's digest as the hub lists it.
        tensors: Dtype and shape by name, where the header alone was fetched.
    """

    folder: Path
    notes: list[str] = field(default_factory=list[str])
    sha256: str | None = None
    tensors: dict[str, tuple[str, tuple[int, ...]]] | None = None


def fetch(
    repository: str,
    choose: Callable[[Collection[str]], str],
    *,
    revision: str | None,
    local_files_only: bool,
    header_only: bool = False,
) -> Fetched:
    """Bring the config and the chosen weights of a repository into the local cache.

    The revision is resolved to a commit once, and every file is taken from that commit. Without a
    connection a snapshot that is already in the cache is used, and a remark says so.

    Args:
        repository: ``owner/name``.
        choose: Given the names of all files, the path of the weight file or index to take.
        revision: Branch, tag or commit.
        local_files_only: Do not connect.
        header_only: Of a safetensors file fetch the header alone.

    Raises:
        FileError: There is no such repository, revision or file, or no connection and nothing cached.
        MissingExtra: huggingface_hub is not installed.
    """
    try:
        import huggingface_hub as hf
        from huggingface_hub import constants
    except ImportError as error:
        raise MissingExtra(
            "huggingface_hub", found="not installed", fix="Run: pip install huggingface-hub"
        ) from error
    if local_files_only or constants.HF_HUB_OFFLINE:
        return Fetched(_cached(hf, repository, revision, None))
    try:
        info = hf.HfApi().model_info(repository, revision=revision, files_metadata=True)
    except Exception as error:
        # Every version of the client and of its transport has its own tree of errors.
        if _status(error) is not None:
            raise _refused(repository, revision, error) from error
        folder = _cached(hf, repository, revision, error)
        return Fetched(
            folder, [f"the hub did not answer; the copy in the cache was used ({folder.name[:12]})"]
        )
    files = {item.rfilename: item for item in info.siblings or ()}
    weights = choose(files)
    start = weights[: weights.rfind("/") + 1]
    config = f"{start}config.json"
    try:
        if header_only and weights.endswith(".safetensors"):
            listed = (
                hf.HfApi().parse_safetensors_file_metadata(repository, weights, revision=info.sha).tensors
            )
            tensors = {name: (item.dtype, tuple(item.shape)) for name, item in listed.items()}
            local = hf.hf_hub_download(repository, config, revision=info.sha) if config in files else ""
            return Fetched(Path(local).parents[config.count("/")] if local else Path(), tensors=tensors)
        local = hf.hf_hub_download(repository, weights, revision=info.sha)
        if config in files:
            hf.hf_hub_download(repository, config, revision=info.sha)
        if weights.endswith(".json"):
            for shard in _shards(Path(local)):
                if start + shard in files:
                    hf.hf_hub_download(repository, start + shard, revision=info.sha)
    except Exception as error:
        raise _refused(repository, revision, error) from error
    lfs: Any = getattr(files[weights], "lfs", None)
    sha256 = lfs.get("sha256") if isinstance(lfs, dict) else getattr(lfs, "sha256", None)
    return Fetched(Path(local).parents[weights.count("/")], [], sha256)


def _shards(index: Path) -> list[str]:
    """Names listed in a shard index; whether they are sound is checked when the folder is opened."""
    try:
        listed = json.loads(index.read_bytes()).get("weight_map", {})
        return sorted({str(part) for part in listed.values()})
    except (ValueError, AttributeError):
        return []


def _cached(hf: Any, repository: str, revision: str | None, cause: Exception | None) -> Path:
    try:
        return Path(hf.snapshot_download(repository, revision=revision, local_files_only=True))
    except Exception as error:
        raise FileError(
            repository,
            found="no copy in the cache, and no connection to the hub",
            expected="an existing path, or a repository that can be reached",
            fix="Check the name and the connection, or download it first.",
            code="CK-L36",
        ) from (cause or error)


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _refused(repository: str, revision: str | None, error: Exception) -> FileError:
    status = _status(error)
    where = f"{repository}@{revision}" if revision else repository
    reasons = {
        401: ("no such repository, or one that needs a login", "Check the name; log in with: hf auth login"),
        403: ("a repository without access for you", "Ask for access on its page."),
        404: ("no such repository, revision or file", "Check the name and the revision."),
        429: ("too many requests", "Wait a minute and try again."),
    }
    found, fix = reasons.get(status or 0, (f"a failed download ({type(error).__name__})", "Try again."))
    return FileError(where, found=found, expected="a repository that can be read", fix=fix, code="CK-L36")
