"""Rows 36 to 38 of the fault table: the hub, its cache, and the disk that is written to."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from controlkit.checkpoints import load
from controlkit.errors import CheckpointCorrupt, DownloadError, SaveError
from tests.checkpoints.fault_table import check
from tests.checkpoints.files import adapter, state
from tests.checkpoints.hub_server import serve

WEIGHTS = "diffusion_pytorch_model.safetensors"


# L36
@check(36)
def what_the_hub_refuses(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """401, 403, 404, 429 and 500, for the list of files and for a file."""
    for status, words in {
        401: "login",
        403: "access",
        404: "no such repository",
        429: "too many requests",
        500: r"an error of the hub \(500\)",
    }.items():
        for part in ("/api/", "/resolve/"):
            with serve(
                adapter().save(folder / "remote"), folder / f"cache{status}{part[1]}", monkeypatch
            ) as hub:
                hub.refuse = {part: status}
                with pytest.raises(DownloadError, match=words) as caught:
                    load("someone/thing")
            assert caught.value.code == "CK-L36"
            assert caught.value.fix


@check(36)
def a_download_that_breaks_off_is_taken_up_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(adapter().save(folder / "remote"), folder / "cache", monkeypatch) as hub:
        hub.cut = {WEIGHTS: [5000, 9000]}
        module = load("someone/thing")
        assert module.digest == hashlib.sha256((folder / "remote" / WEIGHTS).read_bytes()).hexdigest()
        assert [start for name, start in hub.served if name == WEIGHTS] == [0, 5000, 14000]


@check(36)
def a_download_that_never_ends_leaves_no_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut for good, of another length, of other bytes: an error, and nothing under the final name."""
    remote = adapter().save(folder / "remote")

    def final(cache: Path) -> list[Path]:
        return [path for path in cache.rglob(WEIGHTS) if path.exists()]

    with serve(remote, folder / "a", monkeypatch) as hub:
        hub.cut = {WEIGHTS: [5000, *[0] * 40]}
        with pytest.raises(DownloadError, match=r"failed.*Try again"):
            load("someone/thing")
        assert not final(folder / "a")
        hub.cut = {}
        assert load("someone/thing").kind == "t2i-adapter"
    with serve(remote, folder / "b", monkeypatch) as hub:
        hub.claimed = {WEIGHTS: 100}
        with pytest.raises(DownloadError, match=r"100 .*61560") as caught:
            load("someone/thing")
        assert caught.value.code == "CK-L36"
        assert not final(folder / "b")
    with serve(remote, folder / "c", monkeypatch) as hub:
        hub.sha256 = {WEIGHTS: "0" * 64}
        with pytest.raises(CheckpointCorrupt, match=r"needed 0000.*removed from the cache: load it again"):
            load("someone/thing")
        assert not final(folder / "c")
        hub.sha256 = {}
        assert load("someone/thing").kind == "t2i-adapter"
    with serve(remote, folder / "d", monkeypatch) as hub:
        hub.replaced = {WEIGHTS: b"<html>Sign in</html>"}
        with pytest.raises(DownloadError, match=r"found 20 bytes; needed \d+, as the hub lists") as caught:
            load("someone/thing")
        assert caught.value.code == "CK-L36"
        assert not final(folder / "d")
        hub.replaced = {}
        assert load("someone/thing").kind == "t2i-adapter"


@check(36)
def a_hub_that_never_answers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the request, and says nothing: an error once the time is over, and no waiting for ever."""
    from huggingface_hub import constants

    monkeypatch.setattr("controlkit.checkpoints.hub._TIMEOUT", 0.2)
    for name in ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT"):
        monkeypatch.setattr(constants, name, 0.05)
    for part, words in (("/api/", "no connection"), ("/resolve/", "a download that failed.*[Tt]ime")):
        with serve(adapter().save(folder / "remote"), folder / f"cache{part[1]}", monkeypatch) as hub:
            hub.stall = {part: 0.8}
            began = time.monotonic()
            with pytest.raises(DownloadError, match=words) as caught:
                load("someone/thing")
            assert time.monotonic() - began < 20
        assert caught.value.code == "CK-L36"


@check(36)
def without_a_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens: an error at once, or what is in the cache, whole or not at all."""
    with serve(adapter().save(folder / "remote"), folder / "cache", monkeypatch) as hub:
        load("someone/thing")
        hub.close()
        with pytest.warns(UserWarning, match="the hub did not answer; the copy in the cache"):
            load("someone/thing")
        load("someone/thing", local_files_only=True)
        began = time.monotonic()
        with pytest.raises(DownloadError, match="no copy in the cache"):
            load("someone/other")
        assert time.monotonic() - began < 10


@check(36)
def one_commit_for_all_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The branch moves after the first answer; every file still comes from the commit it named."""
    with serve(adapter().save(folder / "remote"), folder / "cache", monkeypatch) as hub:
        load("someone/thing", revision="main")
        commits = {path.split("/resolve/")[1].split("/")[0] for path in hub.paths if "/resolve/" in path}
        assert commits == {hub.commit}


# L37
SHARED = """
import json, sys
from controlkit.checkpoints import load
print(load("someone/thing").digest)
"""


@check(37)
def two_processes_share_a_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = adapter().save(folder / "remote")
    with serve(remote, folder / "cache", monkeypatch) as hub:
        hub.delay = 0.05
        environment = {**os.environ, **hub.environment(folder / "cache"), "OMP_NUM_THREADS": "1"}
        running = [
            subprocess.Popen(
                [sys.executable, "-c", SHARED], env=environment, stdout=subprocess.PIPE, text=True
            )
            for _ in range(2)
        ]
        digests = [process.communicate(timeout=120)[0].strip() for process in running]
    expected = hashlib.sha256((remote / WEIGHTS).read_bytes()).hexdigest()
    assert digests == [expected, expected]
    assert not list((folder / "cache").rglob("*.incomplete"))


# L38
def _full(descriptor: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@check(38)
def brought_to_the_disk_before_it_is_renamed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file's bytes, then every name, then the folder: whatever is cut off between has the old name."""
    done: list[str] = []
    sync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        done.append(f"sync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).suffix}")
        sync(descriptor)

    def renamed(old: Any, new: Any) -> None:
        done.append(f"rename {Path(old).suffix} {Path(new).suffix}")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    adapter().save(folder / "x")
    names = ["rename .tmp .safetensors", "rename .tmp .json", "rename .tmp .md"]
    assert done == ["sync .tmp"] * 3 + names + ["sync "]


@check(38)
def a_full_or_read_only_disk_keeps_the_old_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter().save(folder / "x")
    before = {path.name: path.read_bytes() for path in (folder / "x").iterdir()}
    needed = sum(tensor.nbytes for tensor in state().values()) // 2
    refused = PermissionError(errno.EROFS, "Read-only file system")

    def read_only(*args: Any, **options: Any) -> Any:
        raise refused

    faults: list[tuple[Any, str, Any, str]] = [
        (os, "fsync", _full, rf"no space left on device, \d+ bytes free; needed {needed} bytes of room"),
        (os, "replace", read_only, "read-only file system"),
        (Path, "mkdir", read_only, "read-only file system"),
    ]
    for target, name, fault, words in faults:
        with monkeypatch.context() as patch:
            patch.setattr(target, name, fault)
            with pytest.raises(SaveError, match=words) as caught:
                adapter().half().save(folder / "x")
        assert caught.value.code == "CK-L38"
        assert "intact" in str(caught.value)
        assert {path.name: path.read_bytes() for path in (folder / "x").iterdir()} == before


KILLED = """
import os, signal, sys, time
from tests.checkpoints.files import adapter
from controlkit.checkpoints import load

place, kills = sys.argv[1], 0
modules = [load(adapter().save(place)).half(), load(place)]
while kills < 12:
    child = os.fork()
    if not child:
        number = 0
        while True:
            modules[number % 2].save(place)
            number += 1
    time.sleep(0.003 + 0.0017 * kills)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    kills += 1
    assert load(place).kind == "t2i-adapter"
print(kills)
"""


@check(38)
def killed_while_saving(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever it is killed, the file is a whole one; what was begun has no weight file's name."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder / "x")],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.stdout == "12\n", done.stderr
    left = {path.name for path in (folder / "x").iterdir()} - {"config.json", "README.md", WEIGHTS}
    assert all(name.startswith(".") and name.endswith(".tmp") for name in left)
