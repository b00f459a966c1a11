"""A curve with labelled points, drawn with Pillow: enough for one figure of the documentation."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

_SIZE = (560, 400)
_BOX = (70, 24, 540, 350)
_INK, _GREY, _LINE = (20, 20, 20), (210, 210, 210), (30, 90, 200)


def trade_plot(
    points: Sequence[tuple[float, float]],
    labels: Sequence[str],
    *,
    x_name: str,
    y_name: str,
    y_top: float,
) -> Image.Image:
    """Points (x in [0, 1], y in [0, y_top]), joined in their order, each with its label.

    Args:
        points: Where they are.
        labels: One for each.
        x_name: Below the horizontal axis.
        y_name: Above the vertical axis.
        y_top: End of the vertical axis.

    Returns:
        RGB, 560x400.
    """
    image = Image.new("RGB", _SIZE, (255, 255, 255))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(13)
    left, top, right, bottom = _BOX
    for i in range(6):
        x, y = left + (right - left) * i // 5, bottom - (bottom - top) * i // 5
        draw.line((x, top, x, bottom), fill=_GREY)
        draw.line((left, y, right, y), fill=_GREY)
        draw.text((x, bottom + 14), f"{i / 5:.1f}", fill=_INK, font=font, anchor="mm")
        draw.text((left - 8, y), f"{y_top * i / 5:.2f}", fill=_INK, font=font, anchor="rm")
    places = [(left + (right - left) * x, bottom - (bottom - top) * y / y_top) for x, y in points]
    draw.line(places, fill=_LINE, width=2)
    for i, ((x, y), label) in enumerate(zip(places, labels, strict=True)):
        draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=_LINE)
        # below and above by turns, so that labels of near points do not meet
        draw.text((x, y + (-9 if i % 2 else 9)), label, fill=_INK, font=font, anchor="mb" if i % 2 else "mt")
    draw.text(((left + right) / 2, bottom + 36), x_name, fill=_INK, font=font, anchor="mm")
    draw.text((left, 12), y_name, fill=_INK, font=font, anchor="lm")
    return image
