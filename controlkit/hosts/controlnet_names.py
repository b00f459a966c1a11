"""The words of sd-webui-controlnet's units, in ours: its names for detectors, their sliders, and its modes.

For the hosts that take requests which were written for it: the page's API and AUTOMATIC1111's.

Source: Mikubill/sd-webui-controlnet@56cec5b2 (``scripts/preprocessor``, ``scripts/enums.py``,
``internal_controlnet/external_code.py``); names, ranges and one formula.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from controlkit.errors import ParameterError

NO_MODULE = ("none", "")

_WITH: dict[str, tuple[str, dict[str, Any]]] = {
    "invert (from white bg & black line)": ("invert", {}),
    "scribble_xdog": ("scribble", {}),
    "scribble_hed": ("hed", {"scribble": True}),
    "scribble_pidinet": ("pidinet", {"scribble": True}),
    "softedge_hed": ("hed", {}),
    "softedge_hedsafe": ("hed", {"safe": True}),
    "softedge_pidinet": ("pidinet", {}),
    "softedge_pidisafe": ("pidinet", {"safe": True}),
    "softedge_teed": ("teed", {}),
    "softedge_anyline": ("anyline", {}),
    "lineart_realistic": ("lineart-realistic", {}),
    "lineart_coarse": ("lineart-realistic", {"coarse": True}),
    "lineart_anime": ("lineart-anime", {}),
    "lineart_standard": ("lineart", {}),
    "lineart_standard (from white bg & black line)": ("lineart", {}),
    "depth_midas": ("midas", {}),
    "depth_leres": ("leres", {}),
    "depth_zoe": ("zoe", {}),
    "depth_anything": ("depth-anything", {}),
    "depth_anything_v2": ("depth-anything", {}),
    "normal_bae": ("normal-bae", {}),
    "openpose_full": ("openpose", {"hands": True, "face": True}),
    "openpose_hand": ("openpose", {"hands": True}),
    "openpose_face": ("openpose", {"face": True}),
    "openpose_faceonly": ("openpose", {"body": False, "face": True}),
    "dw_openpose_full": ("dwpose", {}),
    "mediapipe_face": ("mediapipe-face", {}),
    "seg_ofade20k": ("oneformer", {}),
    "seg_ofcoco": ("oneformer", {"weights": "shi-labs/oneformer_coco_swin_large"}),
    "seg_ufade20k": ("upernet", {}),
    "tile_resample": ("tile", {}),
    "blur_gaussian": ("blur", {}),
    "recolor_luminance": ("recolor", {}),
    "recolor_intensity": ("recolor", {"method": "intensity"}),
    "t2ia_color_grid": ("color", {}),
    "inpaint_only": ("inpaint", {}),
    "inpaint_global_harmonious": ("inpaint", {}),
}

ALIASES = {name: ours for name, (ours, _) in _WITH.items()}
"""Their names for detectors of ours. A name that both have, as ``lineart`` or ``depth``, is ours."""

SLIDERS: dict[str, tuple[str, ...]] = {
    "canny": ("low_threshold", "high_threshold"),
    "blur": ("sigma",),
    "scribble": ("threshold",),
    "threshold": ("level",),
    "tile": ("factor",),
    "recolor": ("gamma",),
    "mlsd": ("score", "length"),
    "leres": ("remove_near", "remove_background"),
    "mediapipe-face": ("max_faces", "min_confidence"),
}
"""The options that ``threshold_a`` and ``threshold_b`` stand for."""

MODES = {
    0: "balanced",
    1: "prompt",
    2: "control",
    "balanced": "balanced",
    "my prompt is more important": "prompt",
    "controlnet is more important": "control",
}
RESIZES = {
    0: "stretch",
    1: "crop",
    2: "pad",
    "just resize": "stretch",
    "scale to fit (inner fit)": "crop",
    "inner fit (scale to fit)": "crop",
    "crop and resize": "crop",
    "resize and fill": "pad",
    "envelope (outer fit)": "pad",
    "outer fit (shrink to fit)": "pad",
}
UNION_TYPES = {
    "openpose": "openpose",
    "depth": "depth",
    "soft edge": "softedge",
    "hard edge": "canny",
    "normal map": "normal",
    "segmentation": "segment",
    "tile": "tile",
    "inpaint": "repaint",
}
"""Their types of ControlNet-Union maps (``union_control_type``); ``Unknown`` is none."""


def detector_of(module: object, low: object = -1, high: object = -1) -> tuple[str | None, dict[str, Any]]:
    """The detector of their name, or of ours, and its options; None where the picture is the map.

    Args:
        module: The name, in any case.
        low: ``threshold_a``; -1, and what lies outside the option's range, stand for the default.
        high: ``threshold_b``, likewise.

    Raises:
        ParameterError: No such module.
    """
    from controlkit.preprocessors import detectors

    if not isinstance(module, str):
        raise ParameterError("module", found=f"{module!r:.60}", expected="a name of /controlnet/module_list")
    name = module.strip().lower()
    if name in NO_MODULE:
        return None, {}
    known = {info.name: info for info in detectors()}
    ours, fixed = (name, {}) if name in known else _WITH.get(name, (name, {}))
    if ours not in known:
        raise ParameterError(
            "module", found=repr(module)[:80], expected="a name of /controlnet/module_list", code="CK-P"
        )
    about = {option.name: option for option in known[ours].options}
    options: dict[str, Any] = dict(fixed)
    for slider, value in zip(SLIDERS.get(ours, ()), (low, high), strict=False):
        if slider in about and _inside(value, about[slider]):
            kind: Any = type(about[slider].default)
            options[slider] = kind(value)
    if ours == "canny" and options.get("low_threshold", 0) > options.get("high_threshold", 10**9):
        options["low_threshold"], options["high_threshold"] = (
            options["high_threshold"],
            options["low_threshold"],
        )
    return ours, options


def perfect_side(photo: tuple[int, int], picture: tuple[int, int], resize: str) -> int:
    """Shortest side of a map whose pixels are the picture's: what ``pixel_perfect`` means.

    Args:
        photo: Width and height of what the detector is given.
        picture: Width and height of what is made.
        resize: ``pad`` where the whole map is to be seen, else it covers the picture.
    """
    ratios = [want / have for want, have in zip(picture, photo, strict=True)]
    ratio = min(ratios) if resize == "pad" else max(ratios)
    return max(1, round(ratio * min(photo)))


def union_type(value: object) -> str | None:
    """Our name of a ``union_control_type``; None for ``Unknown``.

    Raises:
        ParameterError: No such type.
    """
    name = value.strip().lower() if isinstance(value, str) else value
    if name is None or name in ("unknown", ""):
        return None
    if not isinstance(name, str) or name not in UNION_TYPES:
        raise ParameterError(
            "union_control_type", found=f"{value!r:.60}", expected=f"one of {', '.join(UNION_TYPES)}"
        )
    return UNION_TYPES[name]


def _inside(value: object, option: Any) -> bool:
    """Whether a slider was moved: -1 and what lies outside stand for the default, as in the original."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return bool(option.low <= value <= option.high)


def written(options: Mapping[str, Any]) -> str:
    """Options as people write them, ``low_threshold: 60, high_threshold: 140``."""
    return ", ".join(f"{name}: {value}" for name, value in options.items())
