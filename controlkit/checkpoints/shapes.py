"""What the names and shapes of a checkpoint's tensors tell about its network."""

from __future__ import annotations

import re
from collections.abc import Mapping

from controlkit.errors import ConfigError, Incomplete, ShapeMismatch

Shapes = Mapping[str, tuple[int, ...]]

OTHER_OR_CUT = "A network of other structure is not read; if it is the right one, download it again."
"""What to do where a tensor is missing or odd in a file that is sound: both can be the reason."""


def shape_of(shapes: Shapes, name: str, what: str) -> tuple[int, ...]:
    """The shape of a tensor that is needed to tell the size of the network.

    Raises:
        Incomplete: It is not there.
    """
    if name not in shapes:
        raise Incomplete(
            what,
            found=f"no {name}",
            expected="it, to tell the size of the network",
            fix=f"{OTHER_OR_CUT} Its config.json tells the size too.",
            code="CK-L22",
        )
    return shapes[name]


def shape_of_rank(shapes: Shapes, name: str, rank: int, what: str) -> tuple[int, ...]:
    """As `shape_of`, of a tensor that must have so many dimensions.

    Raises:
        Incomplete: It is not there.
        ShapeMismatch: It has more or fewer.
    """
    shape = shape_of(shapes, name, what)
    if len(shape) != rank:
        raise ShapeMismatch(
            f"{what}: {name}",
            found=f"shape {list(shape)}",
            expected=f"{rank} dimensions",
            fix=OTHER_OR_CUT,
            code="CK-L24",
        )
    return shape


def count(shapes: Shapes, pattern: str) -> int:
    """One more than the largest number that the pattern's first group matches at a name's beginning.

    No more than can be numbered without gaps by as many tensors (two in a row may have none): a name with a
    number of ten digits does not make a list of as many blocks, it makes one with most of its blocks missing.
    """
    found = 1 + max((int(match[1]) for name in shapes if (match := re.match(pattern, name))), default=-1)
    return min(found, 3 * len(shapes) + 3)


def refuse_giant(blocks: int, shapes: Shapes, what: str) -> None:
    """Refuse a config that describes far more blocks than there are tensors, before anything is built.

    Raises:
        ConfigError: It does.
    """
    if blocks > max(200, len(shapes)):
        raise ConfigError(
            f"{what}: config",
            found=f"{blocks} blocks by the config",
            expected=f"no more than the {len(shapes)} tensors there are",
            fix="Use the config.json that came with the weights.",
            code="CK-L31",
        )
