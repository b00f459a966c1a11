"""What the server can do, as plain functions, which API, compatible routes and page call."""

from __future__ import annotations

import base64
import binascii
import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from controlkit.errors import HintTooBig, ParameterError, RecipeError
from controlkit.recipes import ControlRecipe, ModelRecipe, Picture, Recipe, encode
from controlkit.ui import bodies, listing, looking
from controlkit.ui.errors import Refused
from controlkit.ui.jobs import Jobs, Limits
from controlkit.ui.places import Places, plain_options
from controlkit.ui.python import as_python

if TYPE_CHECKING:
    from PIL import Image

MOST_LOOKED_AT = 6_000_000
"""Pixels at which a detector looks at most."""


class Service:
    """The server without HTTP.

    Args:
        places: Where it reads and writes.
        model: Source of the model that is used where none is named.
        limits: What may be asked for.
    """

    def __init__(self, places: Places, model: str = "embedded:base", limits: Limits | None = None) -> None:
        self.places, self.model = places, ModelRecipe(source=model).source
        self.jobs = Jobs(places, limits)
        self._room = threading.BoundedSemaphore(8)
        self._one = threading.Lock()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One detector at a time; a few may wait."""
        if not self._room.acquire(blocking=False):
            raise Refused(
                "server", found="8 pictures being looked at", expected="a free place", status=429, wait=5
            )
        try:
            with self._one, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            self._room.release()

    def picture(self, sent: Picture) -> Image.Image:
        """A picture that was sent, decoded under the limits of `controlkit.images`."""
        if sent.path is not None:
            raise Refused("image", found="a path", expected="the picture itself, as base64", code="CK-S14")
        return self.places.files.picture(sent)

    def content(self, sent: Picture) -> bytes:
        """The bytes of a file that was sent.

        Raises:
            Refused: A path.
            RecipeError: Broken base64.
        """
        if sent.data is None:
            raise Refused("image", found="a path", expected="the picture itself, as base64", code="CK-S14")
        try:
            return base64.b64decode(sent.data, validate=True)
        except binascii.Error as error:
            raise RecipeError("image data", found=f"broken base64 ({error})", expected="a PNG file") from None

    def preprocess(self, body: bodies.Preprocess) -> dict[str, Any]:
        """A detector's map of a photograph.

        Raises:
            ControlKitError: The picture, the detector or its options cannot be used.
        """
        photo = self.picture(body.image)
        drawn = self.detected(photo, body.detector, body.options, body.size, body.resolution)
        about = drawn.info["controlkit"]
        return {
            "image": as_base64(drawn),
            "width": drawn.width,
            "height": drawn.height,
            "detector": about["detector"],
            "empty": about["empty"],
            "notes": about["notes"],
        }

    def detected(
        self,
        photo: Image.Image,
        detector: str,
        options: dict[str, Any],
        size: Any = None,
        resolution: Any = None,
    ) -> Image.Image:
        """A detector's map, as `controlkit.preprocess` makes it."""
        from controlkit.preprocessors import preprocess
        from controlkit.preprocessors.registry import build

        made = build(detector, **self._options(detector, options))
        self._check_size(photo, size)
        with self._turn():
            drawn = preprocess(photo, made, size=size, resolution=resolution)
        return drawn

    def _options(self, detector: str, options: dict[str, Any]) -> dict[str, Any]:
        """Options with pictures in place of base64, and nothing in them that names a file."""
        from controlkit.preprocessors import detectors

        info = next((info for info in detectors() if info.name == detector), None)
        pictures = {about.name for about in info.options if about.default is None} if info else set()
        plain_options({name: value for name, value in options.items() if name not in pictures}, "options")
        given = dict(options)
        for name in pictures & given.keys():
            value = given[name]
            if value is not None and not isinstance(value, str | dict):
                raise ParameterError(
                    f"options.{name}", found=f"{value!r:.60}", expected="a picture as base64"
                )
            if value is not None:
                given[name] = self.picture(bodies.Read(image=value).image)  # pyright: ignore[reportArgumentType]
        return given

    def _check_size(self, photo: Image.Image, size: Any) -> None:
        width, height = photo.size
        if isinstance(size, int):
            width, height = (round(side * size / max(1, min(photo.size))) for side in photo.size)
        elif size:
            width, height = size
        if width * height > MOST_LOOKED_AT:
            raise HintTooBig(
                "image",
                found=f"{width} x {height} pixels to be looked at",
                expected=f"at most {MOST_LOOKED_AT / 1e6:g} million on this server",
                fix="Give size=, in pixels; 512 to 1024 is what most modules were trained on.",
            )

    def seen(self, part: ControlRecipe, width: int, height: int) -> looking.Seen:
        """What a module will see of a control's picture.

        Raises:
            ControlKitError: Something in it cannot be used.
        """
        recipe = Recipe(prompt="", width=width, height=height, controls=(part,))
        self.jobs.limits.check(self.places.vetted(recipe))
        with self._turn():
            return looking.seen(part, self.places, width, height)

    def preview(self, body: bodies.Preview) -> dict[str, Any]:
        """As `seen`, as plain data."""
        found = self.seen(body.control, body.width, body.height)
        return {
            "map": as_base64(found.map),
            "shown": as_base64(found.shown),
            "notes": list(found.notes),
            "doubt": found.doubt,
            "condition": found.condition,
        }

    def check(self, body: bodies.Check) -> dict[str, Any]:
        """What `controlkit.check_map` says."""
        from controlkit.maps import check_map

        found = check_map(self.picture(body.image), body.condition, palette=body.palette)
        return {**asdict(found), "ok": found.ok, "text": str(found)}

    def inspect(self, body: bodies.Inspect) -> dict[str, Any]:
        """What weights are."""
        return listing.about(body.source, self.places)

    def recipe_of(self, content: bytes) -> Recipe:
        """The recipe in a PNG, or in JSON.

        Raises:
            RecipeError: There is none.
        """
        from controlkit.images import open_image

        if content[:4] == b"\x89PNG":
            open_image(io.BytesIO(content), notes=[])  # refuses what is damaged or too large
        return self.places.vetted(Recipe.load(content))

    def python(self, recipe: Recipe) -> dict[str, Any]:
        """A recipe as code, with the pictures that it reads."""
        code, files = as_python(self.places.vetted(recipe), models=self.places.models)
        return {
            "code": code,
            "files": {name: base64.b64encode(content).decode() for name, content in files.items()},
        }


def as_base64(picture: Image.Image) -> str:
    """A picture as base64 of a PNG."""
    return encode(picture)
