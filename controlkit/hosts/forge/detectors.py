"""Our detectors in Forge's own ControlNet panel and API: as more of its preprocessors.

Beside them, one entry for each kind of map that a file of several kinds (ControlNet-Union, Uni-ControlNet)
reads, which hands the picture on as it is and says what it shows; and one for pictures that are read whole.

Source:
    The contract of ``modules_forge.supported_preprocessor.Preprocessor`` in Forge f2.0.1.
"""

# pyright: reportUnknownMemberType=false
# (what is inherited is Forge's, which is not there for the type checker)

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from controlkit.hosts.controlnet_names import SLIDERS, detector_of
from controlkit.hosts.webui.controls import CONTENT
from controlkit.hosts.webui.host import host
from controlkit.preprocessors import DetectorInfo, detectors, preprocess
from controlkit.preprocessors.base import OptionInfo

_Forge: Any = host("modules_forge.supported_preprocessor")
_Base: Any = _Forge.Preprocessor
_Slider: Any = _Forge.PreprocessorParameter

BEFORE = "ControlKit"
"""What the names begin with, as Forge has detectors of its own that are called the same."""

MAPS = (
    *("canny", "depth", "hed", "lineart", "mlsd", "normal", "openpose", "repaint"),
    *("scribble", "segment", "softedge", "tile"),
)
"""What a file of several kinds reads, by the names of the condition."""

_TAGS: dict[str, tuple[str, tuple[str, ...]]] = {
    "canny": ("Canny", ("canny",)),
    "depth": ("Depth", ("depth",)),
    "lineart": ("Lineart", ("lineart",)),
    "mlsd": ("MLSD", ("mlsd",)),
    "normal": ("NormalMap", ("normalmap", "normal")),
    "openpose": ("OpenPose", ("openpose", "densepose")),
    "recolor": ("Recolor", ("recolor",)),
    "scribble": ("Scribble", ("scribble",)),
    "seg": ("Segmentation", ("segmentation", "seg")),
    "shuffle": ("Shuffle", ("shuffle",)),
    "softedge": ("SoftEdge", ("softedge",)),
    "tile": ("Tile", ("tile",)),
}
"""Forge's control types by our families, and the parts of file names that go with them."""
_LAST = -1
"""Below Forge's own, which stay what it proposes for a control type."""


class Detect(_Base):
    """One of our detectors.

    Args:
        info: What is known about it.
    """

    def __init__(self, info: DetectorInfo) -> None:
        super().__init__()
        self._info = info
        self.name = name_of(info.name)
        self.shows = info.family
        self.sorting_priority = _LAST
        if info.family in _TAGS:
            tag, parts = _TAGS[info.family]
            self.tags, self.model_filename_filters = [tag], list(parts)
        self._sliders = sliders_of(info)
        for place, option in enumerate(self._sliders, 1):
            setattr(self, f"slider_{place}", _slider(option))

    def __call__(
        self,
        input_image: Any,
        resolution: float,
        slider_1: float | None = None,
        slider_2: float | None = None,
        slider_3: float | None = None,
        **_: Any,
    ) -> Any:
        """The map of a picture.

        Args:
            input_image: (H, W, 3) uint8.
            resolution: The map's shortest side in pixels.
            slider_1: The first of `sliders_of`; what lies outside its range stands for the default.
            slider_2: The second, likewise.
            slider_3: The third, likewise.

        Returns:
            (H, W, 3) uint8.
        """
        given = zip(self._sliders, (slider_1, slider_2, slider_3), strict=False)
        options: dict[str, Any] = {option.name: _value(option, value) for option, value in given}
        options = {name: value for name, value in options.items() if value is not None}
        for option in self._sliders:  # two thresholds the wrong way round
            one, other = options.get(option.name), options.get(option.at_most)
            if one is not None and other is not None and one > other:
                options |= {option.name: other, option.at_most: one}
        photo = Image.fromarray(np.asarray(input_image, np.uint8)[..., :3])
        return np.array(preprocess(photo, self._info.name, size=max(int(resolution), 1), **options))


class Shown(_Base):
    """The picture as it is, said to be a map of one kind.

    Args:
        condition: Which.
    """

    def __init__(self, condition: str) -> None:
        super().__init__()
        self.name = f"{name_of('map')}: {condition.replace('openpose', 'open pose')}"
        self.shows = condition
        self.sorting_priority = _LAST
        self.slider_resolution = _Slider(visible=False)


class Whole(_Base):
    """A picture that an image encoder reads: the content of a Uni-ControlNet, or a style."""

    def __init__(self) -> None:
        super().__init__()
        self.name = name_of("whole picture")
        self.shows = CONTENT
        self.sorting_priority = _LAST
        self.show_control_mode = False
        self.slider_resolution = _Slider(visible=False)

    def __call__(self, input_image: Any, resolution: float, *_: Any, **__: Any) -> Picture:
        return Picture(np.asarray(input_image, np.uint8)[..., :3])


class Picture:
    """A picture that Forge shall not resize, as it does what is an array.

    Args:
        pixels: (H, W, 3) uint8.
    """

    def __init__(self, pixels: Any) -> None:
        self.pixels = pixels


def preprocessors() -> list[Any]:
    """All of them; runs none and imports nothing that they need.

    Detectors that hide part of the picture (``inpaint``) are Forge's own business: its ControlNets read that
    in another form.
    """
    seen = [info for info in detectors() if info.family != "inpaint"]
    return [*map(Detect, seen), *map(Shown, MAPS), Whole()]


def name_of(detector: str) -> str:
    """What Forge's list calls one of ours.

    A name with ``openpose`` in it would not do: of those Forge's API expects the pose as numbers, too.
    """
    return f"{BEFORE} {detector.replace('openpose', 'open pose')}"


def shown_by(preprocessor: Any) -> str | None:
    """What the maps of a preprocessor show, one of Forge's own too; None where that is not told."""
    if hasattr(preprocessor, "shows"):
        return preprocessor.shows
    known = {info.name: info.family for info in detectors()}
    try:
        ours, _ = detector_of(getattr(preprocessor, "name", None))
    except ValueError:
        return None
    return None if ours is None else known[ours]


def sliders_of(info: DetectorInfo) -> tuple[OptionInfo, ...]:
    """Which options its sliders are, at most three: those of sd-webui-controlnet's first, then numbers."""
    about = {option.name: option for option in info.options}
    first = [about[name] for name in SLIDERS.get(info.name, ()) if name in about]
    numbers = [option for option in info.options if _is_number(option) and option not in first]
    return tuple([*first, *numbers][:3])


def _is_number(option: OptionInfo) -> bool:
    kind = type(option.default)
    return kind in (int, float) and option.low is not None and option.high is not None and not option.choices


def _slider(option: OptionInfo) -> Any:
    whole = isinstance(option.default, int)
    unit = f" ({option.unit})" if option.unit else ""
    return _Slider(
        minimum=option.low,
        maximum=option.high,
        step=option.step or (1 if whole else 0.01),
        value=option.default,
        label=f"{option.name}{unit}",
        visible=True,
    )


def _value(option: OptionInfo, value: float | None) -> int | float | None:
    if value is None or option.low is None or option.high is None or not option.low <= value <= option.high:
        return None
    return int(value) if isinstance(option.default, int) else float(value)
