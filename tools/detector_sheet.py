"""Draw what detectors that need no download make of photographs of scikit-image, for the documentation.

``docs/images/detectors.png`` shows all on three photographs; ``docs/images/detectors/NAME.jpg`` one: what
it is given on the left, its map on the right. With ``--weights`` it draws, of those that need weights, each
network's own map of a photograph instead: ``docs/images/detectors/NAME.png``.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps
from skimage import data

from controlkit.embedded import scene
from controlkit.errors import ControlKitError, ParameterError
from controlkit.preprocessors import DetectorInfo, build, detectors, preprocess
from controlkit.preprocessors.auxiliary import Auxiliary

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
PHOTOS = ("astronaut", "coffee", "rocket")
SEEN = 384
"""Pixels of the photographs' shortest side when they are looked at."""
CELL = 132
PAIR = 256
LABEL = 18
GAP = 6
FACE = (92, 0, 348, 256)
"""The part of the photograph of a person that detectors of faces are given: left, top, right, bottom."""
COLUMNS = 3
"""Detectors side by side; each takes three cells, one per photograph."""
OPTIONS = {"inpaint": {"box": "0.3,0.3,0.7,0.7"}, "lines": {"thickness": 2}, "color": {"cell": 32}}


def cell(image: Image.Image) -> Image.Image:
    """The middle square, small."""
    return ImageOps.fit(image, (CELL, CELL), Image.Resampling.LANCZOS)


def shown() -> list[DetectorInfo]:
    """Our own detectors that need no download."""
    return [info for info in detectors() if info.owner == "controlkit" and not info.needs_weights]


def pair(info: DetectorInfo) -> Image.Image:
    """A picture, and what one detector makes of it."""
    photo = Image.fromarray(data.astronaut())
    if info.name.startswith("embedded"):
        photo = scene(3).image
    photo = ImageOps.fit(photo, (SEEN, SEEN), Image.Resampling.LANCZOS)
    both = Image.new("RGB", (2 * PAIR + GAP, PAIR), "white")
    for i, one in enumerate((photo, preprocess(photo, info.name, **OPTIONS.get(info.name, {})))):
        both.paste(one.resize((PAIR, PAIR), Image.Resampling.LANCZOS), (i * (PAIR + GAP), 0))
    return both


def sheet() -> Image.Image:
    """The whole contact sheet."""
    photos = []
    for name in PHOTOS:
        photo = Image.fromarray(getattr(data, name)())
        photos.append(ImageOps.fit(photo, (SEEN, SEEN), Image.Resampling.LANCZOS))
    strips = [("photograph", [cell(photo) for photo in photos])]
    for info in shown():
        if info.name.startswith("embedded"):
            continue
        maps = [preprocess(photo, info.name, **OPTIONS.get(info.name, {})) for photo in photos]
        strips.append((info.name, [cell(drawn) for drawn in maps]))
    wide, tall = 3 * CELL + 2 * GAP + 2 * GAP, CELL + LABEL + 2 * GAP
    rows = -(-len(strips) // COLUMNS)
    canvas = Image.new("RGB", (COLUMNS * wide + GAP, rows * tall + GAP), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    for i, (name, cells) in enumerate(strips):
        left, top = GAP + i % COLUMNS * wide, GAP + i // COLUMNS * tall
        pen.text((left, top), name, fill="black", font=font)
        for k, one in enumerate(cells):
            canvas.paste(one, (left + k * (CELL + GAP // 2), top + LABEL))
    return canvas


def with_weights(wanted: list[str], folder: Path) -> int:
    """Draw the maps of detectors with weights.

    Args:
        wanted: Names, or ``NAME=WEIGHTS`` with where its weights are; none: all, with their usual weights.
        folder: Of the pictures.

    Returns:
        How many could not be drawn; why is printed. Their pictures stay as they are.
    """
    from detector_formats import PHOTOGRAPH, save, save_given

    known = {info.name: info for info in detectors() if info.owner == "controlkit" and info.needs_weights}
    failed = 0
    save_given(folder)
    for entry in wanted or list(known):
        name, given, place = entry.partition("=")
        options = {"weights": place} if given else {}
        try:
            if name not in known:
                raise ParameterError("--weights", found=name, expected=", ".join(known))
            photo, shown = Image.fromarray(data.astronaut()), PHOTOGRAPH
            if known[name].family == "face":
                photo, shown = photo.crop(FACE), "given-face.jpg"
                photo.save(folder / shown, quality=85, optimize=True)
            detector = build(name, **options)
            drawn = preprocess(photo, detector)
        except ControlKitError as error:
            failed += 1
            print(f"{name}: {error}", file=sys.stderr)
            continue
        used = detector.source() if isinstance(detector, Auxiliary) else getattr(detector, "weights", "")
        used = used or known[name].extra.split()[-1]  # the package that has them
        used = Path(used).name if Path(used).exists() else used
        save(drawn, folder / f"{name}.png", {"shows": "answer", "weights": used, "given": shown})
        print(folder / f"{name}.png")
    return failed


def main() -> int:
    """Draw what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=IMAGES)
    parser.add_argument(
        "--weights",
        nargs="*",
        metavar="NAME[=WEIGHTS]",
        help="draw detectors with weights, these or all, with their networks",
    )
    given = parser.parse_args()
    folder = given.out
    (folder / "detectors").mkdir(parents=True, exist_ok=True)
    if given.weights is not None:
        return min(1, with_weights(given.weights, folder / "detectors"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        drawn = sheet()
        for info in shown():
            pair(info).save(folder / "detectors" / f"{info.name}.jpg", quality=85, optimize=True)
    palette = drawn.quantize(256)
    drawn.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(
        folder / "detectors.png", optimize=True
    )
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
