"""``controlkit convert``: weights from any layout that is read into diffusers', or back into the original."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from controlkit.cli.console import emit_json, progress, table
from controlkit.errors import ParameterError, SaveError

if TYPE_CHECKING:
    from collections.abc import Callable

_LAYOUTS = ("diffusers", "original")
_DTYPES = ("float32", "float16", "bfloat16")


def convert(
    source: Annotated[str, typer.Argument(help="A file, a folder in diffusers layout, or a hub id.")],
    target: Annotated[
        Path, typer.Argument(help="A folder for diffusers layout; a .safetensors file for the original one.")
    ],
    layout: Annotated[
        str | None,
        typer.Option(help="diffusers or original. [default: original where TARGET ends in .safetensors]"),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, float16 or bfloat16. [default: as stored]")
    ] = None,
    kind: Annotated[str | None, typer.Option(help="Refuse anything else, such as controlnet.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="A JSON file with what shapes do not tell, such as the heads.")
    ] = None,
    subfolder: Annotated[str | None, typer.Option(help="Of the folder or repository.")] = None,
    weight_name: Annotated[str | None, typer.Option(help="Of the weight file in it.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    sha256: Annotated[str | None, typer.Option(help="What the SHA-256 of the weight file must be.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse tensors that belong to nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Write where there are files already.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Convert weights: safetensors, with a config and a model card that says what they were made from.

    Every check of loading applies: nothing is written unless the weights are complete and finite.

    Examples:

    - `controlkit convert control_v11p_sd15_canny.pth canny/`
    - `controlkit convert canny/ canny.safetensors --dtype float16`
    - `controlkit convert OWNER/NAME folder/ --revision main --json`
    """
    chosen = _layout(layout, target)
    if dtype is not None and dtype not in _DTYPES:
        raise ParameterError("--dtype", found=repr(dtype), expected=", ".join(_DTYPES))
    _refuse_existing(target, chosen, force=force)

    import torch

    import controlkit as ck
    from controlkit.checkpoints.pickles import digest_of
    from controlkit.checkpoints.save import WEIGHTS, save_module, save_original

    with _bytes("reading") as advance:
        module = ck.load(
            source,
            kind=kind,
            config=config,
            subfolder=subfolder,
            weight_name=weight_name,
            revision=revision,
            dtype=getattr(torch, dtype) if dtype else None,
            sha256=sha256,
            strict=strict,
            progress=advance,
        )
    with _bytes("writing") as advance:
        if chosen == "diffusers":
            written = save_module(module, target, progress=advance) / WEIGHTS
        else:
            written = save_original(module, target, progress=advance)
    with open(written, "rb") as file:
        digest = digest_of(file)
    result: dict[str, Any] = {
        "target": str(target),
        "layout": chosen,
        "kind": module.kind,
        "base": module.base,
        "parameters": sum(part.numel() for part in module.parameters()),
        "dtype": str(next(module.parameters()).dtype).removeprefix("torch."),
        "bytes": written.stat().st_size,
        "sha256": digest,
        "source": source,
        "source_sha256": module.digest,
        "notes": list(module.notes),
    }
    if as_json:
        emit_json(result)
        return
    shown = {key: value for key, value in result.items() if key != "notes" and value is not None}
    table("", "", rows=[(key.replace("_", " "), _shown(value)) for key, value in shown.items()])


def _layout(layout: str | None, target: Path) -> str:
    is_file = target.suffix.lower() == ".safetensors"
    if layout is None:
        return "original" if is_file else "diffusers"
    if layout not in _LAYOUTS:
        raise ParameterError("--layout", found=repr(layout), expected=" or ".join(_LAYOUTS))
    if is_file != (layout == "original"):
        raise ParameterError(
            "TARGET",
            found=repr(str(target)),
            expected="a folder" if layout == "diffusers" else "a file that ends in .safetensors",
            fix=f"That is what --layout {layout} writes.",
        )
    return layout


def _refuse_existing(target: Path, layout: str, *, force: bool) -> None:
    """Before anything is read, which may take long."""
    if layout == "diffusers" and target.exists() and not target.is_dir():
        raise SaveError(str(target), found="a file", expected="a folder", fix="Give another name.")
    if layout == "original" and target.is_dir():
        raise SaveError(str(target), found="a folder", expected="a file", fix="Give another name.")
    there = any(target.iterdir()) if target.is_dir() else target.exists()
    if there and not force:
        raise SaveError(
            str(target),
            found="a folder with files in it" if target.is_dir() else "a file",
            expected="nothing there yet",
            fix="Give another name, or --force to write there.",
        )


@contextmanager
def _bytes(label: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar that is told bytes done and in all."""
    with progress(label, 100) as advance:
        yield lambda done, total: advance(100 * done // max(1, total))


def _shown(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
