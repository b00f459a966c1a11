"""Thousands of requests made from the API's own description: none is answered by a fault of the server."""

from __future__ import annotations

import copy
import json
import os
import random
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import controlkit as ck
from tests.ui.conftest import ADDRESS, recipe

pytestmark = pytest.mark.slow

CASES = 5_000
"""Requests made from the description, at least."""
BENT = 3_000
"""Requests that are right but for a value or two."""


def test_five_thousand_requests_and_no_fault(
    service: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schemathesis = pytest.importorskip("schemathesis", reason="no schemathesis: pip install schemathesis")
    from hypothesis import HealthCheck, Phase, given, settings

    from controlkit.ui.api import make_app
    from controlkit.ui.guard import Door, Guard
    from controlkit.ui.webui import add_routes

    monkeypatch.setattr(service.jobs, "_run", lambda job: ("done", None))  # what runs has its own tests
    app = make_app(service)
    add_routes(app, service)
    described = schemathesis.openapi.from_dict(app.openapi())
    guarded: Any = Guard(app, Door())
    from fastapi.testclient import TestClient

    answers: Counter[int] = Counter()
    faults: list[str] = []
    operations = [found.ok() for found in described.get_all_operations()]
    plain = [
        found for found in operations if not found.body and not found.path_parameters and not found.query
    ]
    each = CASES * 6 // 5 // (len(operations) - len(plain))  # some are drawn twice, and asked once
    with (
        TestClient(guarded, base_url=ADDRESS, raise_server_exceptions=False) as client,
        _files_opened(tmp_path) as opened,
    ):
        (tmp_path / "secret.png").read_bytes()
        assert opened == {str(tmp_path / "secret.png")}, "the watch itself works"
        opened.clear()
        for operation in operations:

            @given(case=operation.as_strategy())
            @settings(
                max_examples=2 if operation in plain else each,
                deadline=None,
                database=None,
                derandomize=True,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            def ask(case: Any) -> None:
                arguments = case.as_transport_kwargs(base_url=ADDRESS)
                try:
                    answer = client.request(**arguments)
                except (UnicodeError, ValueError):  # what no client can send
                    answers[0] += 1
                    return
                answers[answer.status_code] += 1
                if answer.status_code >= 500:
                    faults.append(f"{case.method} {case.path}: {answer.text[:300]}")

            ask()
        drawn = sum(answers.values()) - answers[0]
        for attack in _attacks(tmp_path):
            answer = client.get(f"/api/results/{attack}")
            answers[answer.status_code] += 1
            assert b"canary" not in answer.content
        for path, body in _bent():
            answer = client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
            answers[answer.status_code] += 1
            assert b"canary" not in answer.content
            if answer.status_code >= 500:
                faults.append(f"{path} {json.dumps(body)[:300]}: {answer.text[:300]}")
    report = f"{sum(answers.values())} requests, {drawn} of them drawn: {dict(sorted(answers.items()))}"
    if folder := os.environ.get("CONTROLKIT_FUZZ_REPORT"):
        Path(folder).write_text(report + "\n" + "\n".join(faults[:40]))
    assert not faults, report + "\n" + "\n".join(faults[:10])
    assert drawn >= CASES, report
    assert not opened, f"files outside were opened: {sorted(opened)[:5]}"
    assert not service.places.pictures()


@contextmanager
def _files_opened(folder: Path) -> Iterator[set[str]]:
    """What is opened that no client has a right to: all but code, libraries, and the server's own folders.

    Sees every file that Python opens, whoever asks for it (an audit hook), and leaves its hook inert.
    """
    code = [sys.prefix, sys.base_prefix, str(Path(ck.__file__).resolve().parents[1]), "/usr", "/proc", "/dev"]
    own = [folder / "out", folder / "models", *map(Path, code)]
    roots = tuple(os.path.realpath(path) + os.sep for path in own)
    (folder / "secret.png").write_bytes(b"canary")
    opened: set[str] = set()
    on = True

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if on and event == "open" and isinstance(arguments[0], str | bytes):
            path = os.path.realpath(os.fsdecode(arguments[0]))
            if not path.startswith(roots):
                opened.add(path)

    sys.addaudithook(watch)
    try:
        yield opened
    finally:
        on = False


HOSTILE: list[Any] = [
    None, True, -1, 0, 3, 1e308, 2**70, -(2**70), 0.5, "", "x", "x" * 3000, "../secret.png", "secret.png",
    "/etc/passwd", "file:../secret.png", "hub:a/b", "http://127.0.0.1:9/x.png", "C:\\x", "\ud800", "\0", "-1",
    [], {}, [[1]], [0, 1], {"path": "secret.png"}, {"data": "AAAA"}, {"data": "A"}, {"a": {"b": [{}] * 9}},
]  # fmt: skip
"""What is put in place of a value."""


def _bent() -> Iterator[tuple[str, Any]]:
    """Requests that are right but for one or two values, or for a key too many or too few."""
    chance = random.Random(6)
    image = recipe()["controls"][0]["image"]
    control = {**recipe()["controls"][0], "detect_options": {"sigma": 1.0}, "mask": image, "mode": "prompt"}
    guidance = {"guidance": "color", "target": "red", "options": {"mask": image}, "scale": 0.5}
    whole = recipe(controls=[control, guidance], scheduler={"name": "DDIMScheduler", "options": {"x": 1}})
    init = {"image": image, "mask": image, "strength": 0.7, "blur": 2.0, "keep": True, "margin": None}
    started = {**whole, "init": {**init, "resize": "crop"}}
    part = {**recipe(controls=[]), "init": {**init, "margin": 16}}
    grid = {"control": 0, "scales": [0.0, 0.5, 1.0], "seeds": [3, 4]}
    unit = {
        "image": image["data"],
        "module": "canny",
        "model": "controlnet-canny",
        "weight": 1.0,
        "mask": None,
    }
    img2img = {
        "prompt": "x",
        "init_images": [image["data"]],
        "denoising_strength": 0.7,
        "resize_mode": 1,
        "width": 64,
        "height": 64,
    }
    right = [
        ("/api/generate", whole),
        ("/api/generate", started),
        ("/api/generate", part),
        ("/api/sweep", {"recipe": whole, "sweep": grid}),
        ("/api/sweep", {"recipe": started, "sweep": {**grid, "control": 1}}),
        ("/api/python", whole),
        ("/api/python", started),
        (
            "/api/preprocess",
            {"image": image, "detector": "canny", "options": {"sigma": 1.0}, "size": [32, 32]},
        ),
        ("/api/preprocess", {"image": image, "detector": "inpaint", "options": {"mask": image["data"]}}),
        ("/api/preview", {"control": control, "width": 64, "height": 64}),
        ("/api/check", {"image": image, "condition": "canny", "palette": None}),
        ("/api/recipe", {"image": image}),
        ("/controlnet/detect", {"controlnet_images": [image["data"]], "controlnet_module": "canny"}),
        ("/sdapi/v1/txt2img", {"prompt": "x", "alwayson_scripts": {"controlnet": {"args": [unit]}}}),
        ("/sdapi/v1/img2img", {**img2img, "alwayson_scripts": {"controlnet": {"args": [unit]}}}),
        (
            "/sdapi/v1/img2img",
            {
                **img2img,
                "mask": image["data"],
                "mask_blur": 4,
                "inpainting_fill": 1,
                "inpaint_full_res": True,
                "inpaint_full_res_padding": 8,
                "inpainting_mask_invert": 0,
            },
        ),
    ]
    for _ in range(BENT):
        path, body = chance.choice(right)
        body = copy.deepcopy(body)
        for _ in range(chance.randint(1, 2)):
            holder, key = chance.choice(list(_holders(body)))
            if chance.random() < 0.1 and isinstance(holder, dict):
                holder.pop(key, None)
                holder[chance.choice(["weights", "detector", "image", "self", "x"])] = copy.deepcopy(
                    chance.choice(HOSTILE)
                )
            else:
                holder[key] = copy.deepcopy(chance.choice(HOSTILE))
        yield path, body


def _holders(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a body: what holds it, and under which key."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(pairs):
        yield value, key
        yield from _holders(inner)


def _attacks(folder: Path) -> list[str]:
    """Names that would lead to a canary where paths are put together carelessly."""
    target = str(folder / "secret.png")
    ups = ["../secret.png", "..%2fsecret.png", "..%252fsecret.png", "%2e%2e%2fsecret.png", "..\\secret.png"]
    ups += [target, "%2f" + target.lstrip("/").replace("/", "%2f"), "file://" + target, "secret.png%00.png"]
    return [prefix + name for prefix in ("", "x/", "./", "%2e/", "//") for name in ups]
