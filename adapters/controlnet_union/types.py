"""What the types of maps are called, and the number that the network knows each by.

Source:
    Types 0 to 5: "ControlMode" in the README of xinsir6/ControlNetPlus@b4842057; 6 and 7: its `promax/`
    examples, which set the seventh number for tiles and the eighth for in- and outpainting. The same
    numbers are in `comfy/cldm/control_types.py` of Comfy-Org/ComfyUI.
"""

from __future__ import annotations

from controlkit.errors import ParameterError

TYPES: tuple[tuple[str, ...], ...] = (
    ("openpose", "pose"),
    ("depth",),
    ("softedge", "scribble", "hed", "pidi", "sketch", "ted"),
    ("canny", "lineart", "lineart_anime", "anime_lineart", "mlsd"),
    ("normal",),
    ("segment", "seg", "segmentation"),
    ("tile",),
    ("repaint", "inpaint"),
)
"""The names of each type; the first is the one it is called by. Lines of type 2 are thick, of type 3 thin."""

_NUMBERS = {name: number for number, names in enumerate(TYPES) for name in names}


def number_of(name: str | int, count: int, what: str) -> int:
    """The number of a type.

    Args:
        name: Its name, or the number itself, for networks with types of their own.
        count: How many types the network has.
        what: The argument, for errors.

    Raises:
        ParameterError: The network has no such type; the message lists those it has.
    """
    number = _NUMBERS.get(name.lower(), -1) if isinstance(name, str) else name
    if isinstance(number, int) and not isinstance(number, bool) and 0 <= number < count:
        return number
    known = "; ".join(f"{number}: {', '.join(names)}" for number, names in enumerate(TYPES[:count]))
    wider = isinstance(name, str) and name.lower() in _NUMBERS
    raise ParameterError(
        what,
        found=f"the type {name!r}" + (f" for a network with {count} types" if wider else ""),
        expected=f"a name or number among {known}" + (f"; up to {count - 1}" if count > len(TYPES) else ""),
        fix="Tile and repaint are in the ProMax weights alone." if wider else "Check the spelling.",
    )


def title_of(number: int) -> str:
    """What a type is called in reports."""
    return TYPES[number][0] if number < len(TYPES) else f"type {number}"
