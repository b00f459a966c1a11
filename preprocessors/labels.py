"""Which palette the numbers of a segmentation network stand for: told by the names of its labels.

Source:
    ADE20K: the 150 names of Zhou et al. (CVPR 2017) as networks of transformers and of detectron2
    (data/datasets/builtin_meta.py at 0dd2b65) write them. COCO: the 133 panoptic categories, from the same
    file. The colours are those of `controlkit.maps.palettes`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from controlkit.errors import KindMismatch

CHOICES = ("auto", "ade20k", "coco", "plain")
_KNOWN_SHARE = 0.9
"""Of names that must be known ones at their places; the others may be spelt in a new way."""


def _names(text: str) -> tuple[frozenset[str], ...]:
    """A set of spellings for each label."""
    return tuple(frozenset(name.split("|")) for name in " ".join(text.split()).split("; "))


NAMES = {
    "ade20k": _names("""
        wall; building; sky; floor; tree; ceiling; road; bed; windowpane|window; grass; cabinet; sidewalk;
        person; earth; door; table; mountain; plant; curtain; chair; car; water; painting; sofa; shelf;
        house; sea; mirror; rug; field; armchair; seat; fence; desk; rock; wardrobe; lamp; bathtub|tub;
        railing|rail; cushion; base; box; column; signboard; chest of drawers; counter; sand; sink;
        skyscraper; fireplace; refrigerator; grandstand; path; stairs; runway; case; pool table; pillow;
        screen door; stairway; river; bridge; bookcase; blind; coffee table; toilet; flower; book; hill;
        bench; countertop; stove; palm; kitchen island; computer; swivel chair; boat; bar; arcade machine;
        hovel; bus; towel; light; truck; tower; chandelier; awning; streetlight|street lamp; booth;
        television receiver|tv; airplane|plane; dirt track; apparel|clothes; pole; land; bannister;
        escalator; ottoman; bottle; buffet; poster; stage; van; ship; fountain; conveyer belt; canopy;
        washer; plaything; swimming pool|pool; stool; barrel; basket; waterfall|falls; tent; bag;
        minibike; cradle; oven; ball; food; step; tank; trade name; microwave; pot; animal; bicycle; lake;
        dishwasher; screen; blanket; sculpture; hood; sconce; vase; traffic light; tray; ashcan|trash can;
        fan; pier; crt screen; plate; monitor; bulletin board; shower; radiator; glass; clock; flag"""),
    "coco": _names("""
        person; bicycle; car; motorcycle; airplane; bus; train; truck; boat; traffic light; fire hydrant;
        stop sign; parking meter; bench; bird; cat; dog; horse; sheep; cow; elephant; bear; zebra;
        giraffe; backpack; umbrella; handbag; tie; suitcase; frisbee; skis; snowboard; sports ball; kite;
        baseball bat; baseball glove; skateboard; surfboard; tennis racket; bottle; wine glass; cup; fork;
        knife; spoon; bowl; banana; apple; sandwich; orange; broccoli; carrot; hot dog; pizza; donut;
        cake; chair; couch; potted plant; bed; dining table; toilet; tv; laptop; mouse; remote; keyboard;
        cell phone; microwave; oven; toaster; sink; refrigerator; book; clock; vase; scissors; teddy bear;
        hair drier; toothbrush; banner; blanket; bridge; cardboard; counter; curtain; door; floor-wood;
        flower; fruit; gravel; house; light; mirror; net; pillow; platform; playingfield; railroad; river;
        road; roof; sand; sea; shelf; snow; stairs; tent; towel; wall-brick; wall-stone; wall-tile;
        wall-wood; water; window-blind; window; tree; fence; ceiling; sky; cabinet; table; floor;
        pavement; mountain; grass; dirt; paper; food; building; rock; wall; rug"""),
}
_ENDINGS = ("-merged", "-other", "-stuff")


def palette_of(labels: Mapping[int, str], wanted: str, what: str) -> NDArray[np.uint8]:
    """The colour of each label of a network.

    Args:
        labels: Its ``id2label``: the name of each number.
        wanted: One of ``CHOICES``. ``auto``: the palette that has these names in this order. A palette's name
            says which it is where the network has no names (``LABEL_0`` and so on). ``plain``: see `plain`.
        what: The network, for errors.

    Returns:
        (labels, 3) RGB.

    Raises:
        KindMismatch: The labels are not the palette's, by their number, names or order.
    """
    from controlkit.maps.palettes import PALETTES

    count = len(labels)
    if wanted == "plain":
        return plain(count)
    names = [frozenset(_spellings(labels.get(i, ""))) for i in range(count)]
    unnamed = all(labels.get(i, "").casefold() == f"label_{i}" for i in range(count))
    for known, expected in NAMES.items():
        if wanted not in ("auto", known) or count != len(expected):
            continue
        if _agree(names, expected) or (unnamed and wanted == known):
            return np.asarray(PALETTES[known], np.uint8)
    first = ", ".join(str(labels.get(i, "")).strip() for i in range(min(3, count)))[:200]
    sizes = ", ".join(f"{known} ({len(expected)} labels)" for known, expected in NAMES.items())
    order = "a known one" if wanted == "auto" else f"that of {wanted}"
    raise KindMismatch(
        what,
        found=f"{count} labels ({first}, ...) in an order that is not {order}",
        expected=f"the labels, in their order, of a palette that controls were trained on: {sizes}",
        fix="Give a network of one of these, or palette='plain' for colours without a meaning.",
    )


def plain(count: int) -> NDArray[np.uint8]:
    """Distinct colours by number, without a meaning: the bits of each number from 1 dealt to the channels.

    Args:
        count: How many, below 2^24.

    Returns:
        (count, 3) RGB, none black. The rule of PASCAL VOC's colour maps.
    """
    numbers = np.arange(1, count + 1)
    colours = np.zeros((count, 3), np.int64)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (numbers >> (3 * bit + channel) & 1) << (7 - bit)
    return colours.astype(np.uint8)


def _agree(names: list[frozenset[str]], expected: tuple[frozenset[str], ...]) -> bool:
    """Whether nearly all names are at their places, and none at another's."""
    places = {spelling: i for i, spellings in enumerate(expected) for spelling in spellings}
    known = sum(bool(mine & theirs) for mine, theirs in zip(names, expected, strict=True))
    moved = any(
        not mine & expected[i] and any(places.get(spelling, i) != i for spelling in mine)
        for i, mine in enumerate(names)
    )
    return not moved and known >= _KNOWN_SHARE * len(expected)


def _spellings(name: str) -> list[str]:
    """Synonyms of one label, without what COCO's stuff has at its end."""
    found: list[str] = []
    for each in str(name).casefold().split(","):
        word = each.strip()
        for ending in _ENDINGS:
            word = word.replace(ending, "")
        found.append(word)
    return found
