"""Is what cannot be a target or an option refused when it is given, in words that say what is needed?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import controlkit as ck
from tests import tiny
from tests.guidance.cases import PALETTE, Clean, Net, Pair, clip_model, labels, left_half, noisy_clip, picture

g = ck.guidance
NAN = torch.full((1, 1, 8, 8), float("nan"))
IMAGE = picture()

TARGETS: dict[str, tuple[Callable[[], Any], Any, type[Exception], str]] = {
    "a class below 0": (
        lambda: g.classifier(Net(4, 3, pool=True), classes=3),
        -1,
        ck.ParameterError,
        "class -1",
    ),
    "a class too many": (
        lambda: g.classifier(Net(4, 3, pool=True), classes=3),
        3,
        ck.ParameterError,
        "class 3",
    ),
    "half a class": (lambda: g.classifier(Net(4, 3, pool=True)), 1.5, ck.ParameterError, "class"),
    "no class": (lambda: g.classifier(Net(4, 3, pool=True)), None, ck.ParameterError, "class"),
    "no classes": (lambda: g.classifier(Net(4, 3, pool=True)), [], ck.ParameterError, "shape"),
    "an empty text": (lambda: g.text(Pair()), " ", ck.ParameterError, "a text"),
    "no texts": (lambda: g.text(Pair()), [], ck.ParameterError, "a text"),
    "a number for a text": (lambda: g.text(Pair()), 3, ck.ParameterError, "a text"),
    "an embedding of NaN": (lambda: g.text(Pair()), torch.tensor([float("nan")] * 12), ck.HintError, "NaN"),
    "an embedding of zeros": (lambda: g.text(Pair()), torch.zeros(2, 12), ck.HintError, "all 0"),
    "an embedding of shape (1, 2, 3)": (lambda: g.text(Pair()), torch.ones(1, 2, 3), ck.HintError, "shape"),
    "a text without a tokenizer": (lambda: g.text(clip_model()), "a", ck.ParameterError, "tokenizer"),
    "a text without an encoder": (lambda: g.text(noisy_clip()), "a", ck.NotApplicable, "embeddings"),
    "a path for a picture": (lambda: g.image(Pair()), "cube.png", ck.HintError, "a text"),
    "a label in floats": (
        lambda: g.segmentation(Net(4, 3, pool=False)),
        np.ones((8, 8)),
        ck.HintError,
        "float",
    ),
    "a label map of 1 axis": (
        lambda: g.segmentation(Net(4, 3, pool=False)),
        np.ones(8, np.int64),
        ck.HintError,
        "shape",
    ),
    "a label below 0": (
        lambda: g.segmentation(Net(4, 3, pool=False)),
        labels() - 3,
        ck.ParameterError,
        "label -3",
    ),
    "no label": (lambda: g.segmentation(Net(4, 3, pool=False)), labels() * 0 + 255, ck.HintError, "nothing"),
    "an empty label map": (
        lambda: g.segmentation(Net(4, 3, pool=False)),
        np.zeros((0, 8), np.int64),
        ck.HintError,
        "no values",
    ),
    "a text for a label map": (lambda: g.segmentation(Net(4, 3, pool=False)), "cube", ck.HintError, "labels"),
    "colours without a palette": (
        lambda: g.segmentation(Net(4, 3, pool=False)),
        IMAGE,
        ck.HintError,
        "palette",
    ),
    "colours of another palette": (
        lambda: g.segmentation(Net(4, 3, pool=False), palette=PALETTE),
        IMAGE,
        ck.HintError,
        "none of the palette",
    ),
    "a label without a colour": (
        lambda: g.segmentation(palette=PALETTE),
        labels() + 1,
        ck.ParameterError,
        "label 3",
    ),
    "edges of NaN": (g.edges, NAN, ck.HintError, "NaN"),
    "edges of bytes in floats": (g.edges, np.full((8, 8), 200.0), ck.HintError, "0..255"),
    "no edges": (g.edges, None, ck.HintError, "None"),
    "an empty list": (g.edges, [], ck.HintError, "empty"),
    "flat depth": (lambda: g.depth(Clean(3, 1, pool=False)), np.full((8, 8), 0.5), ck.HintError, "one value"),
    "an unknown colour": (g.color, "reddish", ck.ParameterError, "reddish"),
    "a colour of two numbers": (g.color, (1, 2), ck.ParameterError, "2 numbers"),
    "a colour above 255": (g.color, (1, 2, 256), ck.ParameterError, "256"),
    "a colour below 0": (g.color, (0.5, -0.1, 0), ck.ParameterError, "-0.1"),
    "no colour": (g.color, None, ck.ParameterError, "a colour"),
    "a picture for a palette": (lambda: g.color(match="palette"), IMAGE, ck.ParameterError, "palette"),
    "a picture beside a mask": (lambda: g.color(mask=left_half()), IMAGE, ck.ParameterError, "beside a mask"),
    "NaN for a reference": (lambda: g.region(left_half()), NAN.expand(1, 3, 8, 8), ck.HintError, "NaN"),
    "a target of a sum": (lambda: g.total((g.color(), "red")), "red", ck.ParameterError, "its own"),
}

OPTIONS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "a classifier that cannot be called": (lambda: g.classifier("resnet"), ck.ParameterError, "a str"),
    "a classifier that sees nothing": (
        lambda: g.classifier(Net(4, 3, pool=True), sees="latent"),
        ck.ParameterError,
        "sees",
    ),
    "no classes at all": (
        lambda: g.classifier(Net(4, 3, pool=True), classes=0),
        ck.ParameterError,
        "classes",
    ),
    "a text model that is none": (lambda: g.text(nn.Linear(2, 2)), ck.ParameterError, "encode_image"),
    "a weight of 0": (lambda: g.text(Pair(), weight=0), ck.ParameterError, "weight"),
    "an unknown match": (lambda: g.image(Pair(), match="mood"), ck.ParameterError, "mood"),
    "content of a pair without features": (
        lambda: g.image(_Plain(), match="content"),
        ck.NotApplicable,
        "feature maps",
    ),
    "a negative seed": (lambda: g.image(Pair(), seed=-1), ck.ParameterError, "seed"),
    "an encoder that cannot be called": (lambda: g.image(Pair(), encode=3), ck.ParameterError, "encode"),
    "a sigma of 0": (lambda: g.region(left_half(), sigma=0), ck.ParameterError, "sigma"),
    "a sigma of NaN": (lambda: g.color(sigma=float("nan")), ck.ParameterError, "sigma"),
    "an endless weight": (lambda: g.edges(weight=float("inf")), ck.ParameterError, "weight"),
    "a threshold below 0": (lambda: g.edges(threshold=-0.1), ck.ParameterError, "threshold"),
    "a sigma in words": (lambda: g.segmentation(sigma="wide"), ck.ParameterError, "sigma"),
    "an empty mask": (lambda: g.region(Image.new("L", (8, 8))), ck.ParameterError, "0 everywhere"),
    "no mask": (lambda: g.region(None), ck.HintError, "None"),
    "an empty palette": (lambda: g.segmentation(palette=[]), ck.ParameterError, "palette"),
    "a palette of noise": (lambda: g.segmentation(palette=["red", "blub"]), ck.ParameterError, "blub"),
    "colours in latents": (lambda: g.segmentation(sees="noisy"), ck.ParameterError, "sees"),
    "labels to ignore in words": (lambda: g.segmentation(ignore=["sky"]), ck.ParameterError, "ignore"),
    "no fields": (lambda: g.color(size=0), ck.ParameterError, "size"),
    "a depth network that is none": (lambda: g.depth(None), ck.ParameterError, "NoneType"),
    "a side alone": (lambda: g.depth(Clean(3, 1, pool=False), size=(4,)), ck.ParameterError, "size"),
    "an empty sum": (lambda: g.total(), ck.ParameterError, "no parts"),
    "a sum of no pairs": (lambda: g.total(g.color()), ck.ParameterError, "part 1"),
    "a sum with an endless weight": (
        lambda: g.total((g.color(), "red", float("inf"))),
        ck.ParameterError,
        "weight",
    ),
    "a sum of what sees different things": (
        lambda: g.total((g.color(), "red"), (g.text(Pair()), "a cube")),
        ck.ParameterError,
        "image and noisy",
    ),
    "a sum with a target that cannot be": (lambda: g.total((g.color(), "blub")), ck.ParameterError, "blub"),
}


class _Plain:
    """Towers alone."""

    def encode_image(self, x: Any, t: Any) -> Any:
        return x.flatten(1)[:, :4]

    def encode_text(self, texts: Any) -> Any:
        return torch.ones(len(texts), 4)


@pytest.mark.parametrize("name", TARGETS)
def test_targets_that_cannot_be_are_refused(name: str) -> None:
    make, y, kind, says = TARGETS[name]
    with pytest.raises(kind, match=says):
        ck.Guidance(make(), y)


@pytest.mark.parametrize("name", OPTIONS)
def test_options_that_cannot_be_are_refused(name: str) -> None:
    make, kind, says = OPTIONS[name]
    with pytest.raises(kind, match=says):
        make()


ANSWERS: dict[str, tuple[Any, Any, Any, str]] = {
    "maps from a classifier": (g.classifier(lambda x: x), 0, "clean", "(images, classes)"),
    "a class that the network has not": (g.classifier(lambda x: x.mean((2, 3))), 9, "clean", "class 9"),
    "a row too many": (g.classifier(lambda x: torch.cat((x, x)).mean((2, 3))), 0, "clean", "rows"),
    "nothing": (g.classifier(lambda x: None), 0, "clean", "no tensor"),
    "classes from a segmenter": (g.segmentation(lambda x: x.mean((2, 3))), labels(), "clean", "labels, h, w"),
    "a label that the network has not": (
        g.segmentation(lambda x: x[:, :2]),
        labels(),
        "clean",
        "label 2",
    ),
    "two channels of depth": (
        g.depth(lambda x: x[:, :2]),
        np.eye(8, dtype=np.float32),
        "image",
        "depth of shape",
    ),
    "embeddings of another width": (g.text(Pair()), torch.ones(5), "noisy", "5 wide"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_what_a_network_answers_is_checked_at_the_first_step(name: str) -> None:
    phi, y, sees, says = ANSWERS[name]
    pipe = tiny.pipeline()
    with (
        pytest.raises(ck.ControlKitError) as caught,
        ck.attach(pipe, ck.Guidance(phi, y, sees=sees)),
    ):
        pipe("a", num_inference_steps=2, height=64, width=64, output_type="latent")
    assert says in f"{caught.value} {caught.value.__cause__}"


def test_weights_on_the_meta_device_are_refused_when_attached() -> None:
    with torch.device("meta"):
        network = nn.Sequential(nn.Conv2d(4, 3, 1))
    guidance = ck.Guidance(g.segmentation(network), labels())
    with pytest.raises(ck.DeviceMismatch, match="meta"), ck.attach(tiny.pipeline(), guidance):
        pass
