"""The contact sheet of a grid: its pictures in one, with scales above, seeds beside and scores below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image, ImageDraw, ImageFont

LONGEST = 4096
"""Longest side of a sheet in pixels, about; pictures are reduced to fit."""
LARGEST = 512
"""Longest side of a picture on a sheet in pixels."""
SMALLEST = 192
"""Pictures with a shorter side than this are shown twice as large, pixel by pixel."""

_INK, _PAPER, _SOFT = (24, 24, 27), (255, 255, 255), (110, 110, 118)
_GAP = 8


@dataclass
class Sheet:
    """A contact sheet that is filled picture by picture.

    Args:
        title: The first line.
        details: The second.
        columns: Words above the columns.
        rows: Words beside the rows.
    """

    title: str
    details: str
    columns: Sequence[str]
    rows: Sequence[str]
    _cells: list[tuple[Image.Image, tuple[str, ...]]] = field(
        default_factory=list[tuple[Image.Image, tuple[str, ...]]]
    )

    def add(self, picture: Image.Image, words: Sequence[str] = ()) -> None:
        """The next picture, row by row, with the lines below it."""
        side = max(48, min(LARGEST, LONGEST // max(len(self.columns), len(self.rows)) - 2 * _GAP))
        shown = picture.convert("RGB")
        if max(shown.size) < SMALLEST and max(shown.size) * 2 <= side:
            shown = shown.resize((shown.width * 2, shown.height * 2), Image.Resampling.NEAREST)
        shown.thumbnail((side, side), Image.Resampling.LANCZOS)
        self._cells.append((shown, tuple(words)))

    def drawn(self) -> Image.Image:
        """The sheet; places without a picture stay empty."""
        large, normal, small = (_font(size) for size in (20, 16, 13))
        width = max((cell.width for cell, _ in self._cells), default=SMALLEST)
        height = max((cell.height for cell, _ in self._cells), default=SMALLEST)
        below = 16 * max((len(words) for _, words in self._cells), default=0)
        left = 2 * _GAP + int(max(normal.getlength(word) for word in self.rows))
        top = 5 * _GAP + 20 + 16 + 18
        total = left + len(self.columns) * (width + _GAP) + _GAP
        total = max(total, 360)
        paper = Image.new("RGB", (total, top + len(self.rows) * (height + below + _GAP) + _GAP), _PAPER)
        pen = ImageDraw.Draw(paper)
        pen.text((_GAP, _GAP), clipped(self.title, large, total - 2 * _GAP), _INK, large)
        pen.text((_GAP, 2 * _GAP + 20), clipped(self.details, normal, total - 2 * _GAP), _SOFT, normal)
        for number, word in enumerate(self.columns):
            x = left + number * (width + _GAP) + width / 2
            pen.text((x, top - _GAP), clipped(word, normal, width), _INK, normal, anchor="ms")
        for number, word in enumerate(self.rows):
            y = top + number * (height + below + _GAP) + height / 2
            pen.text((_GAP, y), word, _INK, normal, anchor="lm")
        for number, (cell, words) in enumerate(self._cells):
            row, column = divmod(number, len(self.columns))
            x, y = left + column * (width + _GAP), top + row * (height + below + _GAP)
            paper.paste(cell, (x, y))
            for line, word in enumerate(words):
                place = (x, y + cell.height + 2 + 16 * line)
                pen.text(place, clipped(word, small, width), _SOFT, small)
        return paper


def clipped(text: str, font: Any, width: float) -> str:
    """A text on one line that is at most so many pixels wide."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[: -max(1, len(text) // 20)]
    return text + "…"


def _font(size: int) -> Any:
    return ImageFont.load_default(size)
