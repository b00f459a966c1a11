"""Palettes are the published ones, and a network's labels must be theirs."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from controlkit.errors import KindMismatch
from controlkit.maps.palettes import PALETTES
from controlkit.preprocessors.auxiliary import auxiliary
from controlkit.preprocessors.labels import NAMES, palette_of, plain
from tests.preprocessors.pretrained.small import ADE, COCO

ENDS = {  # count, first, last, colours that are twice in the published palette
    "ade20k": (150, (120, 120, 120), (92, 0, 255), {(140, 140, 140)}),
    "coco": (133, (220, 20, 60), (250, 141, 255), set()),
}
SPOT_CHECKS = {  # controlnet-aux's ade_palette and detectron2's COCO_CATEGORIES
    "ade20k": {2: ("sky", (6, 230, 230)), 12: ("person", (150, 5, 61)), 149: ("flag", (92, 0, 255))},
    "coco": {
        79: ("toothbrush", (191, 162, 208)),
        80: ("banner", (255, 255, 128)),
        86: ("door", (92, 136, 89)),
        119: ("sky", (70, 130, 180)),
        131: ("wall", (102, 102, 156)),
    },
}


@pytest.mark.parametrize("name", ENDS)
def test_palettes_are_the_published_ones(name: str) -> None:
    count, first, last, twice = ENDS[name]
    colours = PALETTES[name]
    assert (len(colours), colours[0], colours[-1]) == (count, first, last)
    assert {colour for colour, times in Counter(colours).items() if times > 1} == twice
    assert len(NAMES[name]) == count
    for place, (label, colour) in SPOT_CHECKS[name].items():
        assert label in NAMES[name][place]
        assert colours[place] == colour


def test_ade_colours_are_those_of_controlnet_aux() -> None:
    assert [list(colour) for colour in PALETTES["ade20k"]] == auxiliary("util").ade_palette()


SPELT = {
    "ade20k": [
        ADE,
        {**ADE, 6: "road, route", 7: "bed ", 8: "window ", 37: "tub", 89: "tv"},
        {**ADE, 149: "flag pole of a new spelling"},
    ],
    "coco": [COCO, {**COCO, 115: "window-other", 131: "wall-other-merged", 86: "door-stuff"}],
}


@pytest.mark.parametrize(
    ("name", "turn"), [(name, turn) for name in SPELT for turn in range(len(SPELT[name]))]
)
def test_the_palette_follows_the_names(name: str, turn: int) -> None:
    labels = SPELT[name][turn]
    for wanted in ("auto", name):
        assert palette_of(labels, wanted, "a network").tolist() == [list(one) for one in PALETTES[name]]


SWAPPED = {**ADE, 0: ADE[1], 1: ADE[0]}
BACKGROUND = {0: "background", **{i + 1: name for i, name in ADE.items()}}
UNNAMED = {i: f"LABEL_{i}" for i in range(150)}
REFUSED = {
    "swapped": (SWAPPED, "auto"),
    "swapped, forced": (SWAPPED, "ade20k"),
    "with a background": (BACKGROUND, "auto"),
    "another count": ({i: ADE[i] for i in range(19)}, "auto"),
    "no names": (UNNAMED, "auto"),
    "the other palette": (ADE, "coco"),
    "no names, the other palette": (UNNAMED, "coco"),
    "nothing known": ({i: f"kind {i}" for i in range(150)}, "auto"),
    "reversed": ({i: COCO[132 - i] for i in range(133)}, "auto"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_labels_are_refused(case: str) -> None:
    labels, wanted = REFUSED[case]
    with pytest.raises(KindMismatch, match=r"ade20k \(150 labels\), coco \(133 labels\)") as caught:
        palette_of(labels, wanted, "a network")
    assert "palette='plain'" in str(caught.value)
    assert len(np.unique(palette_of(labels, "plain", "a network"), axis=0)) == len(labels)


def test_a_network_without_names_can_be_told() -> None:
    assert palette_of(UNNAMED, "ade20k", "a network").tolist() == [list(one) for one in PALETTES["ade20k"]]


def test_plain_colours_are_distinct_and_not_black() -> None:
    colours = plain(3000)
    assert len(np.unique(colours, axis=0)) == 3000
    assert colours.any(axis=1).all()
    assert colours[:3].tolist() == [[128, 0, 0], [0, 128, 0], [128, 128, 0]]
