"""Fetching from the Hugging Face hub: one commit, only the files that are needed, the cache when offline."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from controlkit.checkpoints.safetensors import parse_header
from controlkit.errors import CheckpointCorrupt, ControlKitError, DownloadError, MissingExtra

_TIMEOUT = 20.0
"""Seconds that the hub has to say what a repository holds; files have the client's own limits."""


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
        DownloadError: There is no such repository, revision or file, or no connection and nothing cached.
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
        info = hf.HfApi().model_info(repository, revision=revision, files_metadata=True, timeout=_TIMEOUT)
    except Exception as error:
        # Every version of the client and of its transport has its own tree of errors.
        if _status(error) is not None:
            raise _refused(repository, revision, error) from error
        folder = _cached(hf, repository, revision, error)
        return Fetched(
            folder, [f"the hub did not answer; the copy in the cache was used ({folder.name[:12]})"]
        )
    files = {item.rfilename: item for item in info.siblings or ()}
    if (commit := info.sha) is None:
        raise DownloadError(
            repository,
            found="an answer without a commit",
            expected="the commit of its files",
            fix="Try again.",
        )
    weights = choose(files)
    start = weights[: weights.rfind("/") + 1]
    config = f"{start}config.json"
    try:
        if header_only and weights.endswith(".safetensors"):
            tensors = _header(hf, repository, weights, commit)
            local = hf.hf_hub_download(repository, config, revision=commit) if config in files else ""
            return Fetched(Path(local).parents[config.count("/")] if local else Path(), tensors=tensors)
        local = _download(hf, repository, files[weights], commit)
        if config in files:
            _download(hf, repository, files[config], commit)
        if weights.endswith(".json"):
            for shard in _shards(Path(local)):
                if start + shard in files:
                    _download(hf, repository, files[start + shard], commit)
    except ControlKitError:
        raise
    except Exception as error:
        raise _refused(repository, revision, error) from error
    _remember(Path(local), revision or "main", commit)
    lfs: Any = getattr(files[weights], "lfs", None)
    sha256 = lfs.get("sha256") if isinstance(lfs, dict) else getattr(lfs, "sha256", None)
    return Fetched(Path(local).parents[weights.count("/")], [], sha256)


def _download(hf: Any, repository: str, item: Any, commit: str) -> str:
    """Fetch one file. What breaks off is taken up again by the client, and never has its final name."""
    local = hf.hf_hub_download(repository, item.rfilename, revision=commit)
    expected = getattr(item, "size", None)
    if isinstance(expected, int) and (found := os.path.getsize(local)) != expected:
        discard(Path(local))
        raise DownloadError(
            f"{repository}: {item.rfilename}",
            found=f"{found} bytes",
            expected=f"{expected}, as the hub lists",
            fix="They were removed from the cache: try again. Check whether the address needs a login.",
        )
    return local


def discard(path: Path) -> bool:
    """Remove a file that is not what the hub lists from the client's cache, or it would be found there again.

    Returns:
        Whether it was in a cache, and is gone.
    """
    if not any(part.name == "snapshots" for part in path.parents):
        return False
    blob = path.resolve()
    with suppress(OSError):
        path.unlink()
        blob.unlink(missing_ok=True)
    return not path.exists()


def _remember(local: Path, revision: str, commit: str) -> None:
    """Note in the client's cache what a branch stood for, so that it is found there without a connection.

    The client does so itself only where it resolves the branch, which is done here, once for all files.
    """
    snapshots = next((part for part in local.parents if part.name == "snapshots"), None)
    if snapshots is None or revision == commit or not re.fullmatch(r"[\w.-]+", revision):
        return
    place = snapshots.with_name("refs") / revision
    temporary = place.with_name(f"{revision}.{uuid4().hex}")
    with suppress(OSError):  # a cache that cannot be written to; nothing depends on it
        place.parent.mkdir(exist_ok=True)
        temporary.write_text(commit, encoding="ascii")
        os.replace(temporary, place)


def _header(hf: Any, repository: str, name: str, commit: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtypes and shapes of a safetensors file, of which the header alone is fetched."""
    what = f"{repository}: {name}"
    try:
        listed = hf.HfApi().parse_safetensors_file_metadata(repository, name, revision=commit).tensors
        plain = {
            key: {"dtype": item.dtype, "shape": list(item.shape), "data_offsets": list(item.data_offsets)}
            for key, item in listed.items()
        }
        size = max((entry["data_offsets"][-1] for entry in plain.values()), default=0)
        raw = json.dumps(plain).encode()
    except (hf.errors.SafetensorsParsingError, KeyError, IndexError, TypeError, ValueError) as error:
        raise CheckpointCorrupt(
            what,
            found=f"a header that cannot be read ({type(error).__name__})",
            expected="a safetensors header",
            fix="Tell its author; the file on the hub is damaged.",
            code="CK-L04",
        ) from error
    parse_header(raw, size, what)
    return {key: (entry["dtype"], tuple(entry["shape"])) for key, entry in plain.items()}


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
        raise DownloadError(
            repository,
            found="no copy in the cache, and no connection to the hub",
            expected="an existing path, or a repository that can be reached",
            fix="Check the name and the connection, or download it first.",
            code="CK-L36",
        ) from (cause or error)


def _status(error: BaseException | None) -> int | None:
    """What the hub answered, which the client may have put behind errors of its own."""
    for _ in range(5):
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is not None or error is None:
            return status
        error = error.__cause__
    return None


def _refused(repository: str, revision: str | None, error: Exception) -> DownloadError:
    status = _status(error)
    where = f"{repository}@{revision}" if revision else repository
    reasons = {
        401: ("no such repository, or one that needs a login", "Check the name; log in with: hf auth login"),
        403: ("a repository without access for you", "Ask for access on its page."),
        404: ("no such repository, revision or file", "Check the name and the revision."),
        429: ("too many requests (429)", "Wait a minute and try again."),
    }
    fix = "Try again; files that are complete are kept, and no part of a file is ever taken for one."
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        fix = "Make room on the disk of the cache, or set HF_HUB_CACHE to another."
    default = (f"a download that failed ({_cause(error)})", fix)
    if status is not None and status >= 500:
        default = (f"an error of the hub ({status})", "Try again in some minutes.")
    found, fix = reasons.get(status or 0, default)
    return DownloadError(where, found=found, expected="a repository that can be read", fix=fix)


def _cause(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:160]
