"""Units of sd-webui-controlnet as controls of a recipe, and its names for modules and models."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from controlkit.errors import ParameterError
from controlkit.hosts.controlnet_names import ALIASES, MODES, RESIZES, SLIDERS, detector_of
from controlkit.recipes import Picture
from controlkit.ui import bodies, listing
from controlkit.ui.places import Places


def body(**properties: dict[str, Any]) -> dict[str, Any]:
    """The ``requestBody`` of OpenAPI for an object with these properties."""
    schema = {"type": "object", "properties": properties}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


TEXT, NUMBER, WHOLE = {"type": "string"}, {"type": "number"}, {"type": "integer"}
_UNIT = {
    "type": "object",
    "properties": {
        "enabled": {"type": "boolean"},
        "image": TEXT,
        "mask": {"type": ["string", "null"]},
        "module": TEXT,
        "model": TEXT,
        "weight": NUMBER,
        "resize_mode": {"type": ["string", "integer"]},
        "processor_res": WHOLE,
        "threshold_a": NUMBER,
        "threshold_b": NUMBER,
        "guidance_start": NUMBER,
        "guidance_end": NUMBER,
        "control_mode": {"type": ["string", "integer"]},
        "pixel_perfect": {"type": "boolean"},
    },
}
_UNITS = {"type": "object", "properties": {"args": {"type": "array", "items": _UNIT}}}
PICTURE: dict[str, Any] = {
    **dict.fromkeys(("prompt", "negative_prompt", "sampler_name", "scheduler"), TEXT),
    **dict.fromkeys(("seed", "steps", "width", "height", "n_iter", "batch_size"), WHOLE),
    "cfg_scale": NUMBER,
    "override_settings": {"type": "object"},
    "alwayson_scripts": {"type": "object", "properties": {"controlnet": _UNITS}},
}
"""What requests of pictures hold."""
TXT2IMG = body(**PICTURE)
"""The description of a request of text to image."""
DETECT = body(
    controlnet_module=TEXT,
    controlnet_images={"type": "array", "items": TEXT},
    controlnet_processor_res=WHOLE,
    controlnet_threshold_a=NUMBER,
    controlnet_threshold_b=NUMBER,
)
"""The description of a request for maps."""
OPTIONS = body(sd_model_checkpoint=TEXT)
"""The description of settings."""


def model_names(places: Places) -> list[str]:
    """Names of control modules."""
    return listing.controls(places)


def module_names() -> list[str]:
    """Names of detectors, theirs too where there is ours."""
    ours = [info["name"] for info in listing.detectors()]
    return ["none", *ours, *(name for name, known in ALIASES.items() if known in ours and name not in ours)]


def module_details() -> dict[str, Any]:
    """For each detector the sliders that stand for its options."""
    details: dict[str, Any] = {"none": {"model_free": False, "sliders": []}}
    for info in listing.detectors():
        options = {option["name"]: option for option in info["options"]}
        sliders = [
            {
                "name": name,
                "value": options[name]["default"],
                "min": options[name]["low"],
                "max": options[name]["high"],
            }
            for name in SLIDERS.get(info["name"], ())
            if name in options
        ]
        details[info["name"]] = {"model_free": False, "sliders": sliders}
    return details


def control_types(places: Places) -> dict[str, Any]:
    """By kind of map: its detectors and modules."""
    models, families = model_names(places), dict[str, list[str]]()
    for info in listing.detectors():
        families.setdefault(info["family"], []).append(info["name"])
    found = {"All": _type(module_names(), models)}
    for family, names in families.items():
        fitting = [name for name in models if family in name.lower()]
        found[family.title()] = _type(["none", *names], fitting)
    return found


def _type(modules: list[str], models: list[str]) -> dict[str, Any]:
    return {
        "module_list": modules,
        "model_list": ["None", *models],
        "default_option": modules[min(1, len(modules) - 1)],
        "default_model": models[0] if models else "None",
    }


def controls_of(values: dict[str, Any], places: Places) -> list[dict[str, Any]]:
    """The controls of a request: its units that are enabled.

    Raises:
        ParameterError: A unit that cannot be used.
    """
    scripts = values.get("alwayson_scripts") or {}
    found: list[Any] = list(_list(values.get("controlnet_units"), "controlnet_units"))
    if not isinstance(scripts, dict):
        raise ParameterError("alwayson_scripts", found=f"{scripts!r:.60}", expected="an object")
    for name, script in scripts.items():
        arguments = _list(script.get("args") if isinstance(script, dict) else None, f"{name:.40}.args")
        if name.lower() == "controlnet":
            found += arguments
        elif any(arguments):
            raise ParameterError(
                "alwayson_scripts", found=repr(name)[:60], expected="controlnet: this server has no other"
            )
    made = [_control(unit, f"unit {number}", places) for number, unit in enumerate(found)]
    return [control for control in made if control is not None]


def _list(value: object, name: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise ParameterError(name, found=f"{value!r:.60}", expected="a list")
    return value


def _control(unit: object, place: str, places: Places) -> dict[str, Any] | None:
    if not isinstance(unit, dict):
        raise ParameterError(place, found=f"{unit!r:.60}", expected="an object")
    if not unit.get("enabled", True):
        return None
    image, mask = unit.get("image") or unit.get("input_image"), unit.get("mask")
    if isinstance(image, dict):
        image, mask = image.get("image"), image.get("mask") or mask
    if not image:
        raise ParameterError(f"{place}: image", found="nothing", expected="a picture as base64")
    mask = unit.get("effective_region_mask") or mask
    model = unit.get("model")
    known = model_names(places)
    source = next((name for name in known if model in (name, name.partition(":")[2])), None)
    if source is None:
        raise ParameterError(
            f"{place}: model", found=f"{model!r:.80}", expected=f"one of {', '.join(known)}", code="CK-P"
        )
    module, options = detector_of(
        unit.get("module", "none"), unit.get("threshold_a", -1), unit.get("threshold_b", -1)
    )
    side = unit.get("processor_res", -1)
    if module is not None and not unit.get("pixel_perfect") and side not in (-1, None):
        options["size"] = whole(side, f"{place}: processor_res", 1, 4096)
    return {
        "module": source,
        "image": sent(image, f"{place}: image"),
        "detect": module,
        "detect_options": options if module and options else None,
        "scale": number(unit.get("weight", 1.0), f"{place}: weight"),
        "start": number(unit.get("guidance_start", 0.0), f"{place}: guidance_start"),
        "end": number(unit.get("guidance_end", 1.0), f"{place}: guidance_end"),
        "mode": _choice(MODES, unit.get("control_mode", 0), f"{place}: control_mode"),
        "resize": _choice(RESIZES, unit.get("resize_mode", 0), f"{place}: resize_mode"),
        "mask": sent(mask, f"{place}: mask") if mask else None,
    }


def _choice(table: dict[Any, str], value: object, name: str) -> str:
    key = value.lower() if isinstance(value, str) else value
    if isinstance(key, bool) or not isinstance(key, int | str) or key not in table:
        names = ", ".join(str(known) for known in table)
        raise ParameterError(name, found=f"{value!r:.60}", expected=f"one of {names}")
    return table[key]


def number(value: object, name: str) -> float:
    """A number.

    Raises:
        ParameterError: It is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ParameterError(name, found=f"{value!r:.60}", expected="a number")
    return float(value) if abs(value) < 1e6 else 1e6


def whole(value: object, name: str, low: int, high: int) -> int:
    """A whole number in a range, also one that is written as a float.

    Raises:
        ParameterError: It is not.
    """
    good = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
    if not good or int(value) != value:  # pyright: ignore[reportArgumentType]
        raise ParameterError(name, found=f"{value!r:.60}", expected=f"a whole number from {low} to {high}")
    return int(value)  # pyright: ignore[reportArgumentType]


def sent(value: object, name: str) -> Picture:
    """A picture that was sent as base64.

    Raises:
        ParameterError: It is no text.
        ControlKitError: It is no base64.
    """
    if not isinstance(value, str):
        raise ParameterError(name, found=f"{value!r:.60}", expected="a picture as base64")
    if "://" in value[:40]:
        raise ParameterError(
            name, found="an address", expected="the picture itself", fix="Nothing is fetched.", code="CK-S15"
        )
    return bodies.Read(image=value.replace("\n", "").replace("\r", "")).image  # pyright: ignore


def as_sent(path: Path) -> str:
    """A file as base64."""
    return base64.b64encode(path.read_bytes()).decode("ascii")
