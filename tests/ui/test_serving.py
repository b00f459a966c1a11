"""``controlkit ui`` as a process: what it prints, what it answers, how it ends; and what it refuses to do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from controlkit.cli import main
from controlkit.ui import guard, listing
from controlkit.ui.places import Places

CODE = "from controlkit.cli import main; import sys; sys.exit(main())"


def test_the_command_serves_until_it_is_interrupted(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CODE, "ui", "--no-page", "--port", "0", "--json", "--out", "pictures"]
    started = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ}
    )
    try:
        assert started.stdout is not None
        text = ""
        while not text.endswith("}\n"):
            line = started.stdout.readline()
            assert line, started.communicate()[1]
            text += line
        told = json.loads(text)
        assert told["address"].startswith("http://127.0.0.1:")
        with urllib.request.urlopen(f"{told['address']}api/version", timeout=30) as answer:
            assert json.load(answer)["jobs"]["submitted"] == 0
        assert not (tmp_path / "pictures").exists()
    finally:
        started.send_signal(signal.SIGINT)
        _, errors = started.communicate(timeout=60)
    assert started.returncode in (0, 130)
    assert "Traceback" not in errors


def test_the_page_is_served_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="no gradio: pip install 'controlkit[ui]'")
    code = (
        "import sys; from pathlib import Path; from controlkit.ui.serving import Settings, application; "
        "application(Settings(Path('out'))); "
        "print([name for name in ('torch', 'diffusers', 'transformers', 'cv2') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--host", "0.0.0.0"), "CONTROLKIT_TOKEN"),
        (("--host", "0.0.0.0", "--token", "short"), "at least 16"),
        (("--models", "absent"), "no folder absent"),
        (("--port", "70000"), "65535"),
        (("--host", "203.0.113.9", "--token", "a" * 20, "--no-page"), "free port"),
    ],
)
def test_what_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CONTROLKIT_TOKEN", raising=False)
    assert main(["ui", *arguments]) == 2
    assert says in capfd.readouterr().err


def test_the_folder_of_models_is_listed(tmp_path: Path) -> None:
    for name in ("net.safetensors", "deep/er/net.pt", "pipe/unet/x.safetensors", "layout/x.safetensors"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "pipe" / "model_index.json").write_text("{}")
    (tmp_path / "layout" / "config.json").write_text("{}")
    (tmp_path / ".hidden.safetensors").write_bytes(b"")
    places = Places(tmp_path / "out", tmp_path)
    assert listing.models(places) == ["embedded:base", "file:pipe"]
    assert listing.controls(places)[-3:] == ["file:deep/er/net.pt", "file:layout", "file:net.safetensors"]


def test_whole_models_in_one_file_are_models_and_no_controls(tmp_path: Path) -> None:
    from controlkit.ui import looking
    from tests import original, tiny

    original.save(tiny.pipeline(), tmp_path / "whole.safetensors")
    places = Places(tmp_path / "out", tmp_path)
    assert listing.models(places) == ["embedded:base", "file:whole.safetensors"]
    assert not [name for name in listing.controls(places) if name.startswith("file:")]
    assert looking.size_of("file:whole.safetensors", places) == (64, 64)


def test_the_page_reads_no_file_that_was_not_uploaded(
    server: tuple[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradio's own routes, asked as no page of ours asks: for a file of this machine, not an upload."""
    httpx = pytest.importorskip("httpx")
    secret = tmp_path / "secret.json"
    secret.write_text('{"recipe": 1, "prompt": "a hidden thing"}')
    with httpx.Client(base_url=server[0], timeout=30) as visitor:
        config = visitor.get("/config").json()
        (place,) = [part["id"] for part in config["components"] if part["props"].get("elem_id") == "restore"]
        drops = [part for part in config["dependencies"] if [place, "upload"] in part["targets"]]
        (drop,) = [part["id"] for part in drops if len(part["outputs"]) > 10]

        def join(path: str) -> Any:
            data = {"path": path, "meta": {"_type": "gradio.FileData"}}
            body = {"data": [data], "fn_index": drop, "session_hash": "visitor", "trigger_id": place}
            return visitor.post("/gradio_api/queue/join", json=body)

        for path in (str(secret), f"../{secret.name}", "/etc/passwd", "http://127.0.0.1:9/x.png"):
            assert join(path).status_code == 400
            assert visitor.get(f"/gradio_api/file={path}").status_code in (403, 404)
        for route in ("queue/join", "upload", "run/predict", "api/predict", "call/predict"):
            assert visitor.post(f"/{route}", json={}).status_code in (404, 405)

        # even where our door let it through, Gradio itself would not read it
        def dropped() -> str:
            with visitor.stream("GET", "/gradio_api/queue/data?session_hash=visitor") as told:
                return "".join(told.iter_text())

        with monkeypatch.context() as patched:
            patched.setattr(guard, "uploaded", lambda path: True)
            assert join(str(secret)).status_code == 200
            answer = dropped()
        assert "was not uploaded" in answer
        assert "hidden" not in answer

        sent = visitor.post("/gradio_api/upload", files={"files": ("r.json", secret.read_bytes())}).json()
        assert join(sent[0]).status_code == 200
        assert "a hidden thing" in dropped()
