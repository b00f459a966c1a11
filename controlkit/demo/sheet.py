"""The contact sheet: per source one block, source and map large, four pairs of pictures beside them."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from controlkit.demo.drawing import DemoRow

CELL, GAP, MARGIN = 176, 8, 28
LARGE = 2 * CELL + GAP
TITLE, LABEL, SMALL = 26, 20, 17
_INK, _SOFT, _PAPER = (24, 24, 28), (104, 104, 112), (255, 255, 255)
_WITH, _WITHOUT = (18, 110, 60), (150, 60, 30)
_HEAD, _CAPTION, _SIDE_LABEL = 46, 62, 130


def contact_sheet(rows: Sequence[DemoRow]) -> Image.Image:
    """One picture that shows what control does.

    Args:
        rows: What `controlkit.demo.draw` gives.

    Returns:
        RGB, about 1,650 pixels wide.
    """
    columns = max(len(row.controlled) for row in rows)
    width = 2 * MARGIN + 2 * (LARGE + GAP) + _SIDE_LABEL + columns * (CELL + GAP)
    block = _HEAD + LARGE + _CAPTION
    height = 2 * MARGIN + len(rows) * block + (len(rows) - 1) * MARGIN
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    top = MARGIN
    for row in rows:
        _block(sheet, draw, row, top)
        top += block + MARGIN
    return sheet


def _block(sheet: Image.Image, draw: ImageDraw.ImageDraw, row: DemoRow, top: int) -> None:
    source = row.source
    draw.text((MARGIN, top), source.title, _INK, _font(TITLE))
    top += _HEAD
    left = MARGIN
    for picture, label in ((source.picture, "source"), (source.control_map, "map")):
        sheet.paste(_sized(picture, LARGE), (left, top))
        draw.text((left, top + LARGE + 8), label, _SOFT, _font(LABEL))
        left += LARGE + GAP
    lines = (("with\ncontrol", row.controlled, _WITH), ("without\ncontrol", row.uncontrolled, _WITHOUT))
    for line, (label, pictures, colour) in enumerate(lines):
        y = top + line * (CELL + GAP)
        draw.multiline_text(
            (left + _SIDE_LABEL - 16, y + CELL // 2), label, colour, _font(LABEL), anchor="rm", align="right"
        )
        for column, picture in enumerate(pictures):
            sheet.paste(_sized(picture, CELL), (left + _SIDE_LABEL + column * (CELL + GAP), y))
    text = left + _SIDE_LABEL
    draw.text(
        (text, top + LARGE + 8), f"“{source.prompt}”, the same four seeds in both lines", _INK, _font(SMALL)
    )
    draw.text((text, top + LARGE + 32), str(row.score), _SOFT, _font(SMALL))


def _sized(picture: Image.Image, side: int) -> Image.Image:
    """A square of this side; enlarged smoothly, for the pictures are small."""
    return picture.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
