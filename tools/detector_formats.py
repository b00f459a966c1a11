"""Draw what maps of detectors with weights look like, without their weights, for the documentation.

``docs/images/detectors/NAME.png``: what is true of a rendered scene, or of a photograph with points placed
on it, in place of the network's answer, and from there the detector's own code. A picture that shows a
network's own answer (``tools/detector_sheet.py --weights``) is kept, unless its name is given.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path

from detector_page import KEY, about
from detector_sheet import IMAGES
from format_pictures.pictures import FORMATS, map_of, photograph, scene, small
from PIL import Image
from PIL.PngImagePlugin import PngInfo

SCENE, PHOTOGRAPH = "given-scene.png", "given-photograph.jpg"


def save(image: Image.Image, path: Path, told: dict[str, str]) -> None:
    """A picture at the size in which it is shown, with what it shows in its text."""
    text = PngInfo()
    text.add_text(KEY, json.dumps(told))
    small(image).save(path, optimize=True, pnginfo=text)


def save_given(folder: Path) -> None:
    """The two pictures that maps are made of."""
    small(scene()).save(folder / SCENE, optimize=True)
    small(photograph()).save(folder / PHOTOGRAPH, quality=85, optimize=True)


def main() -> None:
    """Draw those that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="detectors [default: all whose picture is no network's]")
    parser.add_argument("--out", type=Path, default=IMAGES / "detectors")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    save_given(given.out)
    for name, each in FORMATS.items():
        path = given.out / f"{name}.png"
        if name in given.names or (not given.names and about(path).get("shows") != "answer"):
            shown = PHOTOGRAPH if each.person else SCENE
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                drawn = map_of(name)
            save(drawn, path, {"shows": "truth", "truth": each.truth, "given": shown})
            print(path)


if __name__ == "__main__":
    main()
