"""What the panel, or a request to the API, asked for.

The web UI hands over a flat list: the fields of the first unit, of the second, of the third, and of guidance.
A request may give dictionaries in their place, one per unit, with the same names or sd-webui-controlnet's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar, cast

from controlkit.errors import ParameterError
from controlkit.hosts.controlnet_names import MODES as THEIR_MODES
from controlkit.hosts.controlnet_names import RESIZES as THEIR_RESIZES
from controlkit.hosts.controlnet_names import detector_of, union_type, written
from controlkit.preprocessors import detectors

COUNT = 3
"""Units on the panel."""

NONE = "None"
AUTOMATIC = "Automatic"
MODES = ("balanced", "prompt", "control")
RESIZES = ("stretch", "crop", "pad")
PASSES = ("both", "first", "hires")
FUNCTIONS = ("color", "edges", "region")

_ALIASES = {
    "module": "detector",
    "preprocessor": "detector",
    "input_image": "image",
    "guidance_start": "start",
    "guidance_end": "end",
    "control_mode": "mode",
    "resize_mode": "resize",
    "effective_region_mask": "mask",
    "hr_option": "passes",
}
"""Fields by sd-webui-controlnet's names."""

_IGNORED = frozenset(
    (
        "low_vram",
        "lowvram",
        "save_detected_map",
        "is_ui",
        "output_dir",
        "inpaint_crop_input_image",
        "pulid_mode",
    )
)
"""Fields of sd-webui-controlnet that do not change what a unit of ours adds."""

_REFUSED = {
    "ipadapter_input": "Give the picture; its embedding is made here.",
    "batch_images": "Make one request for each picture.",
    "loopback": "Make one request for each picture.",
    "animatediff_batch": "Make one request for each picture.",
    "batch_mask_dir": "Make one request for each picture.",
    "batch_modifiers": "Make one request for each picture.",
    "batch_image_files": "Make one request for each picture.",
    "batch_keyframe_idx": "Make one request for each picture.",
}
"""Fields of sd-webui-controlnet that would change it, and are nothing here; their defaults are ignored."""

_WORDS: dict[str, dict[Any, str]] = {
    "mode": THEIR_MODES,
    "resize": THEIR_RESIZES,
    "passes": {"low res only": "first", "high res only": "hires"},
}
_READS_ITSELF = ("ip-adapter-auto", "ip-adapter_clip", "clip_vision")
"""Beginnings of sd-webui-controlnet's names for image encoders, in whose place ours chooses."""


@dataclass(frozen=True)
class Unit:
    """A control file and what it is bound to; the fields in the panel's order.

    Args:
        enabled: Whether it acts at all.
        model: Name of the file in the web UI's ControlNet folder.
        image: The map, or a photo for the detector; None: in img2img the picture itself.
        detector: Name of one of our detectors, or ``None``: the picture is the map.
        options: The detector's, as ``low_threshold: 60, high_threshold: 140``.
        weight: 0 is off, 1 as trained.
        start: Share of the steps at which it begins to act.
        end: Share at which it ends.
        mode: ``balanced``, ``prompt`` or ``control``.
        resize: ``stretch``, ``crop`` or ``pad``.
        mask: Where it acts; None: everywhere.
        passes: With hires fix: ``both``, ``first`` or ``hires``.
        size: Shortest side of the detector's map in pixels; 0: the picture's own.
        pixel_perfect: The detector's map has the pixels of the picture that is made.
        condition: What the map shows, as ``canny``: which of a ControlNet-Union's or Uni-ControlNet's maps
            it is (``content``: no map, but the content); else what it is checked against. ``None``: what the
            detector makes, or the file says.
        encoder: Name of the image encoder, for an image prompt, content or a style; ``Automatic``: the one
            that fits.
        block_scales: One factor per residual or cross-attention layer, with commas between; empty: all 1.
    """

    enabled: bool = False
    model: str = NONE
    image: Any = None
    detector: str = NONE
    options: str = ""
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0
    mode: str = "balanced"
    resize: str = "stretch"
    mask: Any = None
    passes: str = "both"
    size: float = 0.0
    pixel_perfect: bool = False
    condition: str = NONE
    encoder: str = AUTOMATIC
    block_scales: str = ""


@dataclass(frozen=True)
class Guide:
    """Guidance by a function of the predicted picture; the fields in the panel's order.

    Args:
        enabled: Whether it acts at all.
        function: ``color``, ``edges`` or ``region``.
        color: A CSS colour or ``#rrggbb``, for ``color``.
        image: A picture to be like, or an edge map.
        mask: The region that counts.
        strength: 1 is Bayes' rule.
        start: Share of the steps at which it begins to act.
        end: Share at which it ends.
        max_norm: Longest gradient of a picture; 0: any.
        normalize: Whether strength shall not depend on φ.
        through_unet: The exact gradient, for one more pass through the U-Net and back.
    """

    enabled: bool = False
    function: str = "color"
    color: str = "red"
    image: Any = None
    mask: Any = None
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0
    max_norm: float = 0.0
    normalize: bool = False
    through_unet: bool = False


Asked = TypeVar("Asked", Unit, Guide)
UNIT_FIELDS = tuple(field.name for field in fields(Unit))
GUIDE_FIELDS = tuple(field.name for field in fields(Guide))
_CHOICES = {"mode": MODES, "resize": RESIZES, "passes": PASSES, "function": FUNCTIONS}
_NUMBERS = ("weight", "start", "end", "strength", "max_norm", "size")
_PLAIN = ("enabled", "image", "mask", "normalize", "through_unet", "pixel_perfect")


def read(args: Sequence[Any]) -> tuple[list[tuple[int, Unit]], list[tuple[int, Guide]]]:
    """The units that are enabled, with their 0-based numbers, and guidance likewise.

    Args:
        args: The script's arguments: fields one after the other, or dictionaries.

    Raises:
        ParameterError: A field that is not known, or with a value that cannot be meant.
    """
    given = [cast("Mapping[str, Any]", arg) for arg in args if _is_unit(arg)]
    if given:
        units = [(i, unit_of(g, f"unit {i}")) for i, g in enumerate(given) if "function" not in g]
        guides = [(i, _made(Guide, g, f"guidance {i}")) for i, g in enumerate(given) if "function" in g]
    else:
        width = len(UNIT_FIELDS)
        rows = [args[i * width : (i + 1) * width] for i in range(COUNT)]
        last = args[COUNT * width : COUNT * width + len(GUIDE_FIELDS)]
        named = [dict(zip(UNIT_FIELDS, row, strict=False)) for row in rows]
        units = [(i, unit_of(n, f"unit {i}")) for i, n in enumerate(named) if n.get("enabled")]
        guide = dict(zip(GUIDE_FIELDS, last, strict=False))
        guides = [(0, _made(Guide, guide, "guidance"))] if guide.get("enabled") else []
    return [u for u in units if u[1].enabled], [g for g in guides if g[1].enabled]


def unit_of(given: Mapping[str, Any], place: str) -> Unit:
    """One unit from its fields by name; a dictionary without ``enabled`` is.

    Raises:
        ParameterError: As for `read`.
    """
    named = {_ALIASES.get(key, key): value for key, value in given.items() if key not in _IGNORED}
    _translate(named, place)
    image = named.get("image")
    if isinstance(image, dict) and named.get("mask") is None:  # a drawing board's picture and mask in one
        named["mask"] = cast("dict[str, Any]", image).get("mask")
    return _made(Unit, named, place)


def _translate(named: dict[str, Any], place: str) -> None:
    """Put what sd-webui-controlnet says in other fields into ours."""
    for name, fix in _REFUSED.items():
        if named.pop(name, None):
            raise ParameterError(f"{place}: {name}", found="a value", expected="none", fix=fix)
    if named.pop("input_mode", "simple") not in (None, "simple", 0):
        raise ParameterError(f"{place}: input_mode", found="another", expected="'simple'")
    side = named.pop("processor_res", None)
    if isinstance(side, int | float) and not isinstance(side, bool) and side > 0:
        named.setdefault("size", float(side))
    kind = union_type(named.pop("union_control_type", None))
    if kind is not None:
        named.setdefault("condition", kind)
    low, high = (named.pop(f"threshold_{end}", -1) for end in "ab")
    module = named.get("detector")
    encodes = isinstance(module, str) and module.lower().startswith(_READS_ITSELF)
    blocks = named.pop("advanced_weighting", None)
    if blocks and encodes:
        raise ParameterError(
            f"{place}: advanced_weighting",
            found="one for an IP-Adapter",
            expected="block_scales",
            fix="Its layers have another order here: the encoder's, the decoder's, the middle's.",
        )
    if blocks:
        named.setdefault("block_scales", blocks)
    if encodes:
        named["detector"] = NONE
    elif module is not None:
        try:
            detector, options = detector_of(module, low, high)
        except ParameterError as error:
            known = ", ".join(info.name for info in detectors())
            expected = f"None, or one of {known}, or sd-webui-controlnet's name of one"
            raise ParameterError(f"{place}: detector", found=error.found, expected=expected) from None
        named["detector"] = NONE if detector is None else detector
        if not named.get("options"):
            named["options"] = written(options)
    for name in ("options", "block_scales"):
        value = named.get(name)
        if isinstance(value, Mapping):
            named[name] = written(cast("Mapping[str, Any]", value))
        elif isinstance(value, list | tuple):
            named[name] = ", ".join(map(str, cast("Sequence[Any]", value)))


def describe(unit: Unit | Guide) -> str:
    """A unit as one line of the picture's parameters: what differs from the default, without pictures."""
    plain = type(unit)()
    names = [field.name for field in fields(unit) if field.name not in ("enabled", "image", "mask")]
    told = [
        name for name in names if name in ("model", "function") or getattr(unit, name) != getattr(plain, name)
    ]
    return "; ".join(f"{name}={_text(getattr(unit, name))}" for name in told)


def restore(text: str, kind: type[Asked]) -> dict[str, Any]:
    """The fields of a line that `describe` made; what cannot be read is left out."""
    found: dict[str, Any] = {"enabled": True}
    defaults = {field.name: field.default for field in fields(kind)}
    for part in text.split("; "):
        name, equals, value = part.partition("=")
        if not equals or name not in defaults:
            continue
        default = defaults[name]
        if isinstance(default, bool):
            found[name] = value == "True"
        elif isinstance(default, float):
            try:
                found[name] = float(value)
            except ValueError:
                continue
        else:
            found[name] = value
    return found


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).replace(";", ",")


def _is_unit(arg: Any) -> bool:
    known = {*UNIT_FIELDS, *GUIDE_FIELDS, *_ALIASES, "processor_res", "threshold_a"} - {"image", "mask"}
    return isinstance(arg, dict) and bool(known & set(cast("dict[str, Any]", arg)))


def _made(kind: type[Asked], named: Mapping[str, Any], place: str) -> Asked:
    known = {field.name: field.default for field in fields(kind)}
    strange = sorted(set(named) - set(known))
    if strange:
        raise ParameterError(place, found=f"{strange[0]!r}", expected=f"one of {', '.join(known)}")
    values: dict[str, Any] = {"enabled": True}
    for name, value in named.items():
        values[name] = _value(name, value, known[name], f"{place}: {name}")
    return kind(**values)


def _value(name: str, value: Any, default: Any, place: str) -> Any:
    if name in ("image", "mask"):
        return value
    if value is None:
        return default
    if name in _PLAIN:
        return bool(value)
    if name in _NUMBERS:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ParameterError(place, found=repr(value)[:60], expected="a number")
        return float(value)
    if name in _CHOICES:
        key = value.lower() if isinstance(value, str) else value
        if isinstance(key, str | int):
            key = _WORDS.get(name, {}).get(key, key)
        if key not in _CHOICES[name]:
            raise ParameterError(
                place, found=repr(value)[:60], expected=f"one of {', '.join(_CHOICES[name])}"
            )
        return key
    if not isinstance(value, str):
        raise ParameterError(place, found=repr(value)[:60], expected="text")
    if name in ("model", "detector", "condition") and value.lower() in ("", "none"):
        return NONE
    return AUTOMATIC if name == "encoder" and value.lower() in ("", "none", "automatic") else value
