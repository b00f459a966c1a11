"""Which detectors there are: our own, in an explicit table, and those of other packages, by entry point."""

from __future__ import annotations

from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from controlkit.errors import ParameterError
from controlkit.images.limits import tell
from controlkit.preprocessors.anyline import AnyLine
from controlkit.preprocessors.base import Detector, DetectorInfo, info_of, with_options
from controlkit.preprocessors.blur import Blur
from controlkit.preprocessors.canny import Canny
from controlkit.preprocessors.color import Color
from controlkit.preprocessors.depth import Depth
from controlkit.preprocessors.depth_anything import DepthAnything
from controlkit.preprocessors.dpt import Dpt
from controlkit.preprocessors.dwpose import DwPose
from controlkit.preprocessors.embedded import EmbeddedDepth, EmbeddedSegmentation
from controlkit.preprocessors.grabcut import GrabCut
from controlkit.preprocessors.hed import Hed
from controlkit.preprocessors.inpaint import Inpaint
from controlkit.preprocessors.invert import Invert
from controlkit.preprocessors.kmeans import KMeans
from controlkit.preprocessors.leres import Leres
from controlkit.preprocessors.lineart import Lineart
from controlkit.preprocessors.lineart_anime import LineartAnime
from controlkit.preprocessors.lineart_realistic import LineartRealistic
from controlkit.preprocessors.lines import Lines
from controlkit.preprocessors.mask2former import Mask2Former
from controlkit.preprocessors.mediapipe_face import MediaPipeFace
from controlkit.preprocessors.midas import Midas
from controlkit.preprocessors.mlsd import Mlsd
from controlkit.preprocessors.normal import Normal
from controlkit.preprocessors.normal_bae import NormalBae
from controlkit.preprocessors.oneformer import OneFormer
from controlkit.preprocessors.openpose import OpenPose
from controlkit.preprocessors.pidinet import PidiNet
from controlkit.preprocessors.recolor import Recolor
from controlkit.preprocessors.sam import Sam
from controlkit.preprocessors.sam2 import Sam2
from controlkit.preprocessors.scribble import Scribble
from controlkit.preprocessors.segformer import SegFormer
from controlkit.preprocessors.shuffle import Shuffle
from controlkit.preprocessors.sobel import Sobel
from controlkit.preprocessors.superpixels import Superpixels
from controlkit.preprocessors.teed import Teed
from controlkit.preprocessors.threshold import Threshold
from controlkit.preprocessors.tile import Tile
from controlkit.preprocessors.upernet import UperNet
from controlkit.preprocessors.vitpose import VitPose
from controlkit.preprocessors.zoe import Zoe
from controlkit.preprocessors.zoedepth import ZoeDepth

GROUP = "controlkit.detectors"

BUILT_IN: tuple[type[Detector], ...] = (
    Canny,
    Scribble,
    Lineart,
    Sobel,
    Lines,
    Threshold,
    Invert,
    Depth,
    Normal,
    Superpixels,
    KMeans,
    GrabCut,
    Blur,
    Tile,
    Color,
    Recolor,
    Shuffle,
    Inpaint,
    Hed,
    PidiNet,
    Teed,
    AnyLine,
    LineartRealistic,
    LineartAnime,
    Mlsd,
    Midas,
    Leres,
    Zoe,
    NormalBae,
    OpenPose,
    DwPose,
    MediaPipeFace,
    Sam,
    DepthAnything,
    Dpt,
    ZoeDepth,
    SegFormer,
    UperNet,
    Mask2Former,
    OneFormer,
    Sam2,
    VitPose,
    EmbeddedDepth,
    EmbeddedSegmentation,
)


def detectors() -> list[DetectorInfo]:
    """Every detector: our own first, then those of other packages by name.

    A package whose detector cannot be imported is left out, with a `ControlKitWarning`.

    Raises:
        ParameterError: Two packages provide the same name; the message names both.
    """
    listed = [info_of(kind) for kind in BUILT_IN]
    for name in sorted(_plug_ins()):
        try:
            listed.append(info_of(_load(name), _owner(_only(name))))
        except (ParameterError, ImportError) as error:
            if isinstance(error, ParameterError) and error.code == "CK-P-twice":
                raise
            tell(f"detector {name!r} is left out: {error}")
    return listed


def build(name: str, /, **options: Any) -> Detector:
    """Make a detector by name.

    Args:
        name: One of `detectors`.
        **options: Its options; the others keep their defaults.

    Raises:
        ParameterError: No such detector or option (with near names), or a value out of range.
    """
    return with_options(_load(name), options)


def _load(name: str) -> type[Detector]:
    own = next((kind for kind in BUILT_IN if kind.name == name), None)
    if name not in _plug_ins():
        if own is None:
            raise _unknown(name)
        return own
    plug_in = _only(name)
    try:
        kind = plug_in.load()
    except Exception as error:
        raise ParameterError(
            f"detector {name!r}",
            found=f"{_owner(plug_in)} cannot be imported ({error})",
            fix="Reinstall that package, or remove it.",
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, Detector) and kind.name == name):
        raise ParameterError(
            f"detector {name!r}",
            found=f"{plug_in.value} of {_owner(plug_in)}",
            expected=f"a subclass of controlkit.preprocessors.Detector with name = {name!r}",
            fix="This is a fault of that package.",
        )
    return kind


def _only(name: str) -> EntryPoint:
    """The one plug-in of a name."""
    found = _plug_ins()[name]
    owners = [_owner(plug_in) for plug_in in found]
    if any(kind.name == name for kind in BUILT_IN):
        owners.insert(0, "controlkit")
    if len(owners) > 1:
        raise ParameterError(
            f"detector {name!r}",
            found=f"provided by {' and by '.join(owners)}",
            expected="one owner",
            fix="Uninstall one of them.",
            code="CK-P-twice",
        )
    return found[0]


def _owner(plug_in: EntryPoint) -> str:
    return plug_in.dist.name if plug_in.dist else plug_in.value


@cache
def _plug_ins() -> dict[str, list[EntryPoint]]:
    """Entry points by name; reading them imports nothing."""
    found: dict[str, list[EntryPoint]] = {}
    for plug_in in entry_points(group=GROUP):
        found.setdefault(plug_in.name, []).append(plug_in)
    return found


def _unknown(name: object) -> ParameterError:
    names = [kind.name for kind in BUILT_IN] + sorted(_plug_ins())
    near = get_close_matches(name.lower(), names, n=2, cutoff=0.5) if isinstance(name, str) else []
    return ParameterError(
        "detector",
        found=repr(name)[:80],
        expected=", ".join(names),
        fix=f"Did you mean {' or '.join(near)}?" if near else "",
    )
