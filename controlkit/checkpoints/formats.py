"""From the names and shapes of a checkpoint's tensors to what it is, and the contract of those who read it.

The table of what is known is in `layouts.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from controlkit.checkpoints.layouts import LAYOUTS, Layout
from controlkit.checkpoints.shapes import Shapes
from controlkit.errors import KindMismatch, NotACheckpoint, ParameterError, Unsupported

if TYPE_CHECKING:
    from controlkit.module import ControlModule


@dataclass(frozen=True)
class Plan:
    """How a checkpoint becomes a module.

    Args:
        build: Makes the module; called on the meta device.
        names: For parameters of the module, the tensor each is read from. One that is not here is
            missing from the checkpoint; one that the module does not have is not used.
        beside: Beginnings of names that belong to something else in the same file, and what that is, such
            as ``{"model.diffusion_model.": "the base model's U-Net"}``. Left out without a remark each.
    """

    build: Callable[[], ControlModule]
    names: Mapping[str, str]
    beside: Mapping[str, str] = field(default_factory=dict[str, str])


class Reader(Protocol):
    """What an adapter's `checkpoint.py` offers."""

    def plan(self, layout: str, shapes: Shapes, config: Mapping[str, Any] | None, what: str) -> Plan:
        """How to build the module; raises when config and shapes do not fit each other."""
        ...

    def describe(
        self, layout: str, shapes: Shapes, config: Mapping[str, Any] | None
    ) -> tuple[str, dict[str, Any]]:
        """Base model and config, as far as they can be told; never raises for an odd checkpoint."""
        ...

    def remarks(self, module: Any) -> list[str]:
        """What a user should know about weights that are valid, such as that they do nothing."""
        ...


_CLASSES = {"ControlNetModel": "controlnet", "T2IAdapter": "t2i-adapter"}
_PARTS = 20
"""Parts of a file that are looked at each for itself, the largest first: a name may begin with anything."""
_WRAPS = ("module.", "_orig_mod.", "controlnet.", "state_dict.", "model.")


def recognise(shapes: Shapes, what: str, *, config: Mapping[str, Any] | None = None) -> Layout:
    """Tell what a checkpoint is.

    Args:
        shapes: Of its tensors, by name, unwrapped.
        what: Its name, for errors.
        config: Consulted only when too few tensors are there to tell.

    Raises:
        NotACheckpoint: No known layout.
    """
    joined = "\n" + "\n".join(shapes) + "\n"
    for layout in LAYOUTS:
        if layout.matches(joined, shapes):
            return layout
    named = _CLASSES.get(str((config or {}).get("_class_name")))
    if named is not None and (
        not shapes or any(name.startswith(("down_blocks.", "mid_block.", "adapter.")) for name in shapes)
    ):
        return next(layout for layout in LAYOUTS if layout.kind == named and layout.layout == "diffusers")
    if not shapes:
        raise NotACheckpoint(
            what,
            found="no tensor in it",
            expected="a control for a U-Net",
            fix="Check that this is the right file.",
            code="CK-L18",
        )
    if parts := _parts(shapes):
        raise NotACheckpoint(
            what,
            found=f"several things in one file: {', '.join(parts)}"[:400],
            expected="one of them, its names without what they begin with",
            fix="Give a state dict with the one that you mean.",
            code="CK-L19",
        )
    raise NotACheckpoint(
        what,
        found=f"{len(shapes)} tensors of no known layout, such as {', '.join(sorted(shapes)[:3])!r:.200}",
        expected="a control for a U-Net",
        fix="Check that this is the right file.",
        code="CK-L20",
    )


def _parts(shapes: Shapes) -> list[str]:
    """What would be recognised if it were alone, and what its names begin with."""
    parts: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        first, dot, rest = name.partition(".")
        if dot:
            parts.setdefault(f"{first}.", {})[rest] = shape
    found: list[str] = []
    for prefix, inner in sorted(parts.items(), key=lambda part: -len(part[1]))[:_PARTS]:
        joined = "\n" + "\n".join(inner) + "\n"
        title = next((layout.title for layout in LAYOUTS if layout.matches(joined, inner)), None)
        if title is not None:
            found.append(f"{prefix!r:.60} ({title})")
    return found


def expect(layout: Layout, kind: str | None, what: str, shapes: Shapes) -> None:
    """Refuse a layout that cannot be loaded, or is not what was asked for.

    Raises:
        KindMismatch: Another kind than asked for, or one that is no control.
        Unsupported: A control in a layout that is not read.
        ParameterError: ``kind`` is none that is known.
    """
    known = loadable_kinds()
    if kind is not None and kind not in known:
        raise ParameterError(
            "kind", found=repr(kind), expected=" or ".join(map(repr, known)), fix="Or leave it out."
        )
    if layout.reader is not None and kind in (None, layout.kind):
        return
    is_control = layout.kind in known or layout.is_control
    raise (Unsupported if is_control and kind in (None, layout.kind) else KindMismatch)(
        what,
        found=f"{layout.title}{_for_base(shapes)}, {len(shapes)} tensors",
        expected=f"a {kind}" if kind else "a control in a layout that is read",
        fix=layout.advice
        if layout.reader is None
        else f"Load it with kind={layout.kind!r}, or without kind.",
        code="CK-L20",
    )


def base_of(shapes: Shapes) -> str:
    """The base model, told by the width of what cross-attention reads; ``other`` where that does not tell."""
    widths = {shape[1] for name, shape in shapes.items() if "attn2" in name and len(shape) == 2}
    bases = {2048: "sdxl", 1024: "sd2", 768: "sd1"}
    return next((base for width, base in bases.items() if width in widths), "other")


def _for_base(shapes: Shapes) -> str:
    names = {"sd1": " for SD 1", "sd2": " for SD 2", "sdxl": " for SDXL"}
    return names.get(base_of(shapes), "")


def loadable_kinds() -> tuple[str, ...]:
    """The kinds that can be loaded, in at least one layout."""
    return tuple(dict.fromkeys(layout.kind for layout in LAYOUTS if layout.reader is not None))


def unwrap(names: Iterable[str]) -> tuple[str, list[str]]:
    """A prefix that all names share because something was wrapped around the module, and remarks on it."""
    names = list(names)
    prefix = ""
    for _ in range(3):
        part = next(
            (wrap for wrap in _WRAPS if names and all(name.startswith(prefix + wrap) for name in names)), None
        )
        # A U-Net's original names begin like that too, and are recognised with it.
        if part is None or any(name.startswith(f"{prefix}model.diffusion_model.") for name in names):
            break
        prefix += part
    return prefix, [f"all names began with {prefix!r}, which was removed"] if prefix else []
