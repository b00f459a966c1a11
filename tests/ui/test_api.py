"""The HTTP API: a picture over it equals one by Python, and whatever is wrong is the client's and says so."""

from __future__ import annotations

import base64
import io
import json
import time
from typing import Any

import numpy as np
import pytest
from PIL import Image

import controlkit as ck
from controlkit.recipes import encode, png_bytes
from tests.ui.conftest import photo, recipe

PHOTO = encode(photo())


def opened(text: str) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(text))) as picture:
        return np.asarray(picture)


def follow(client: Any, job: dict[str, Any]) -> dict[str, Any]:
    until = time.monotonic() + 60
    while job["state"] not in ("done", "failed", "cancelled"):
        assert time.monotonic() < until
        query = {"wait": 5, "since": job.get("version", -1), "preview": True}
        job = client.get(f"/api/jobs/{job['id']}", params=query).json()
    return job


def test_a_picture_over_http_equals_one_by_python(client: Any) -> None:
    started = client.post("/api/generate", json=recipe())
    assert started.status_code == 202
    job = follow(client, started.json())
    assert job["state"] == "done", job
    name = job["results"][0]["name"]
    got = client.get(f"/api/results/{name}")
    assert got.headers["content-type"] == "image/png"
    assert "private" in got.headers["cache-control"]  # names are used once: the gallery asks once
    (expected,) = ck.run(recipe())
    with Image.open(io.BytesIO(got.content)) as picture:
        assert np.array_equal(np.asarray(picture), np.asarray(expected))
    assert client.get("/api/results").json() == [name]
    told = client.get(f"/api/results/{name}/recipe").json()
    assert ck.Recipe.load(told) == ck.Recipe.load(expected)
    read = client.post("/api/recipe", json={"image": base64.b64encode(got.content).decode()})
    assert read.json() == told
    assert client.get("/api/jobs").json()[0]["id"] == job["id"]
    assert client.get("/api/version").json()["jobs"]["done"] == 1


def test_a_job_is_cancelled(client: Any) -> None:
    job = client.post("/api/generate", json=recipe(steps=200)).json()
    client.delete(f"/api/jobs/{job['id']}")
    assert follow(client, job)["state"] == "cancelled"


def test_maps_are_those_of_python(client: Any) -> None:
    body = {"image": PHOTO, "detector": "canny", "options": {"low_threshold": 40}, "size": [32, 48]}
    got = client.post("/api/preprocess", json=body).json()
    expected = ck.preprocess(photo(), "canny", low_threshold=40, size=(32, 48))
    assert np.array_equal(opened(got["image"]), np.asarray(expected))
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    body = {
        "image": f"data:image/png;base64,{PHOTO}",
        "detector": "inpaint",
        "options": {"mask": encode(mask)},
    }
    got = client.post("/api/preprocess", json=body).json()
    shown = opened(got["image"])
    assert np.array_equal(shown[..., :3], np.asarray(ck.preprocess(photo(), "inpaint", mask=mask)))
    assert np.array_equal(shown[..., 3], 255 - np.asarray(mask))  # hidden pixels stay hidden: transparent


def test_lists_and_descriptions(client: Any) -> None:
    assert client.get("/api/models").json() == ["embedded:base"]
    assert client.get("/api/controls").json() == ["embedded:controlnet-canny", "embedded:t2i-depth"]
    assert {"canny", "depth"} <= {info["name"] for info in client.get("/api/detectors").json()}
    assert "color" in client.get("/api/guidance").json()
    assert "DDIMScheduler" in client.get("/api/schedulers").json()
    found = client.post("/api/inspect", json={"source": "embedded:controlnet-canny"}).json()
    assert (found["kind"], found["condition"]) == ("controlnet", "canny")
    checked = client.post("/api/check", json={"image": PHOTO, "condition": "depth"}).json()
    assert checked["ok"] is False
    description = client.get("/api/openapi.json").json()
    assert "/api/generate" in description["paths"]
    schema = description["paths"]["/api/generate"]["post"]["requestBody"]["content"]["application/json"][
        "schema"
    ]
    assert "prompt" in schema["required"]
    page = client.get("/api/docs")
    assert "/api/preprocess" in page.text
    assert "https://" not in page.text


def test_the_code_of_a_recipe_makes_its_picture(
    client: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = client.post("/api/python", json=recipe(prompt='a "house"\n of brick', images=1)).json()
    (tmp_path / "inputs").mkdir()
    for name, content in told["files"].items():
        (tmp_path / "inputs" / name).write_bytes(base64.b64decode(content))
    monkeypatch.chdir(tmp_path)
    exec(compile(told["code"], "told", "exec"), {})
    (expected,) = ck.run(recipe(prompt='a "house"\n of brick'))
    with Image.open("again.png") as picture:
        assert np.array_equal(np.asarray(picture), np.asarray(expected))


HUGE = encode(Image.new("1", (6000, 6000)))
GRAY = base64.b64encode(b"GIF89a" + b"\0" * 20).decode()
CONTROL = recipe()["controls"][0]


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("generate", {}, 422, "prompt"),
        ("generate", {"prompt": 3}, 422, "text"),
        ("generate", {"prompt": "x", "promt": "y"}, 422, "Did you mean prompt"),
        ("generate", {"prompt": "x", "self": 1}, 422, "a key that no recipe has"),
        ("generate", {"prompt": "x", "seed": -1}, 422, "seed"),
        ("generate", {"prompt": "x", "seed": 2**64}, 422, "seed"),
        ("generate", {"prompt": "x", "steps": 0}, 422, "steps"),
        ("generate", {"prompt": "x", "steps": 5000}, 422, "steps"),
        ("generate", {"prompt": "x", "width": 33}, 422, "32 and 40"),
        ("generate", {"prompt": "x", "width": 8192}, 422, "at most 2,048"),
        ("generate", {"prompt": "x", "images": 0}, 422, "images"),
        ("generate", {"prompt": "x", "guidance_scale": "7"}, 422, "number"),
        ("generate", {"prompt": "x", "scheduler": "os.system"}, 422, "scheduler"),
        ("generate", {"prompt": "x", "model": "/etc"}, 422, "embedded:NAME"),
        ("generate", {"prompt": "x", "controls": [{}]}, 422, "controls[0]"),
        ("generate", {"prompt": "x", "controls": [{**CONTROL, "start": 0.9, "end": 0.1}]}, 422, "start"),
        ("generate", {"prompt": "x", "controls": [{**CONTROL, "image": {"path": "a.png"}}]}, 422, "a path"),
        ("generate", {"prompt": "x", "controls": [CONTROL] * 13}, 422, "at most 12"),
        ("preprocess", {"image": PHOTO, "detector": "cany"}, 422, "Did you mean canny"),
        ("preprocess", {"image": PHOTO, "detector": "canny", "options": {"sigma": -1}}, 422, "sigma"),
        ("preprocess", {"image": PHOTO, "detector": "canny", "options": {"detector": "x"}}, 422, "detector"),
        ("preprocess", {"image": PHOTO, "detector": "hed", "options": {"weights": "/x"}}, 422, "weights"),
        ("preprocess", {"image": PHOTO, "detector": "canny", "size": [0, 9]}, 422, "size"),
        ("preprocess", {"image": PHOTO, "detector": "canny", "size": 10**9}, 413, "million"),
        ("preprocess", {"image": PHOTO, "detector": "canny", "resolution": 10**6}, None, ""),
        ("preprocess", {"image": {"path": "secret.png"}, "detector": "canny"}, 400, "base64"),
        ("preprocess", {"image": "http://127.0.0.1/x.png", "detector": "canny"}, 422, "image"),
        ("preprocess", {"image": "AAAA", "detector": "canny"}, 422, "no picture format"),
        ("preprocess", {"image": "====", "detector": "canny"}, 422, "image"),
        ("preprocess", {"image": GRAY, "detector": "canny"}, 422, "damaged"),
        ("preprocess", {"image": PHOTO[:-40], "detector": "canny"}, 422, ""),
        ("preprocess", {"image": HUGE, "detector": "blur"}, 413, "36 million"),
        ("preview", {"control": {**CONTROL, "detect": "nope"}}, 422, "detector"),
        ("preview", {"control": CONTROL, "width": -8}, 422, "width"),
        ("preview", {"control": {**CONTROL, "module": "file:nope"}}, 422, "nope"),
        ("check", {"image": PHOTO, "condition": "cany"}, 422, "Did you mean canny"),
        ("check", {"image": PHOTO, "condition": "seg", "palette": "x"}, 422, "palette"),
        ("inspect", {"source": "file:../../etc/passwd"}, 422, ".."),
        ("inspect", {"source": "embedded:nope"}, 422, "controlnet-canny"),
        ("inspect", {"source": "x"}, 422, "embedded:NAME"),
        ("inspect", {"source": "plugin:nope"}, 422, "plug-in"),
        ("recipe", {"image": PHOTO}, 422, "without a recipe"),
        ("recipe", {"image": "A"}, 422, "broken base64"),
        ("recipe", {"image": {"path": "x.png"}}, 400, "base64"),
        ("recipe", {"image": "e30="}, 422, "prompt"),
        ("python", {"prompt": "x", "controls": [{**CONTROL, "mask": {"path": "m.png"}}]}, 422, "a path"),
    ],
)
def test_mistakes(client: Any, path: str, body: Any, status: int | None, says: str) -> None:
    answer = client.post(f"/api/{path}", json=body)
    assert 400 <= answer.status_code < 500, answer.text
    assert status in (None, answer.status_code), answer.text
    told = answer.json()
    assert says in told["message"], told
    assert set(told) == {"error", "code", "message", "what", "found", "expected", "fix"}
    assert told["code"].startswith("CK")


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"", "application/json", 422),
        (b"[]", "application/json", 422),
        (b"null", "application/json", 422),
        (b"{", "application/json", 422),
        (b'{"prompt": "a", "prompt": "b"}', "application/json", 422),
        (b'{"prompt": "a", "guidance_scale": NaN}', "application/json", 422),
        (b'{"prompt": "a", "guidance_scale": 1e999}', "application/json", 422),
        (b'{"prompt": "\\ud800"}', "application/json", 422),
        (b'{"prompt": "\xff"}', "application/json", 400),
        (b'{"a":' * 100_000, "application/json", 422),
        (b'{"prompt":"x","made_with":' + b'{"a":' * 40 + b"1" + b"}" * 41, "application/json", 400),
        (b'{"prompt": "a"}', "text/plain", 415),
        (b"prompt=a", "application/x-www-form-urlencoded", 415),
        (b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", "application/json", 422),
    ],
)
def test_bodies_that_are_no_recipe(client: Any, content: bytes, kind: str, status: int) -> None:
    answer = client.post("/api/generate", content=content, headers={"content-type": kind})
    assert answer.status_code == status, answer.text
    json.loads(answer.text)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/nothing", 404),
        ("PUT", "/api/generate", 404),
        ("GET", "/api/jobs/none", 404),
        ("DELETE", "/api/jobs/none", 404),
        ("GET", "/api/jobs/none?wait=nan", 422),
        ("GET", "/api/jobs/none?wait=1e9", 422),
        ("GET", "/api/results/none.png", 404),
        ("GET", "/api/results/..%2fsecret.png", 404),
        ("GET", "/api/results/..%5csecret.png", 400),
        ("GET", "/api/results/%2e%2e", 400),
        ("GET", "/api/results/secret.png%00.png", 400),
        ("GET", "/api/results/x.png/../../secret.png", 404),
    ],
)
def test_paths_that_lead_nowhere(client: Any, method: str, path: str, status: int) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status, answer.text
    assert b"secret" not in answer.content or b"found" in answer.content


def test_what_is_seen_is_what_the_module_gets(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The preview equals the tensor that the ControlNet is called with, to the bit."""
    from controlkit.adapters.controlnet import ControlNet

    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    control = {**CONTROL, "image": {"data": encode(photo(100))}, "mask": {"data": encode(mask)}}
    told = client.post("/api/preview", json={"control": control, "width": 64, "height": 64}).json()
    given: list[Any] = []
    hint = ControlNet.encode_hint if hasattr(ControlNet, "encode_hint") else None
    if hint is None:
        pytest.fail("the name of what encodes the map has changed: mend this test")
    monkeypatch.setattr(ControlNet, "encode_hint", lambda self, it: (given.append(it), hint(self, it))[1])
    ck.run(recipe(controls=[control]))
    seen = opened(told["map"]).astype(np.float32) / 255
    assert np.array_equal(seen, given[0][0].permute(1, 2, 0).numpy())
    shown = opened(told["shown"])
    assert np.array_equal(shown[:, :32], opened(told["map"])[:, :32])
    assert shown[:, 32:].max() < 90
    assert told["condition"] == "canny"
    assert any("acts on 50%" in note for note in told["notes"])


def test_a_picture_of_other_metadata_tells_nothing(client: Any) -> None:
    plain = base64.b64encode(png_bytes(photo(), None)).decode()
    assert client.post("/api/recipe", json={"image": plain}).status_code == 422
