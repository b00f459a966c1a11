"""``controlkit preprocess``: from photographs to control maps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from controlkit.cli.console import emit_json, output_path, parse_size, parse_value, progress, stdout
from controlkit.errors import ParameterError


def preprocess(
    detector: Annotated[str, typer.Argument(help="Its name; controlkit detectors lists them.")],
    files: Annotated[list[Path], typer.Argument(help="Photographs.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="A PNG file (for one photograph) or a folder. [default: NAME-DETECTOR.png]"
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            help="Pixels, 512 (shortest side) or 768x512 (width x height). [default: as the photograph]"
        ),
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", "-O", help="KEY=VALUE of the detector; may be repeated.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace files; otherwise a free name is taken.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the paths as JSON.")] = False,
) -> None:
    """Turn photographs into control maps.

    Examples:

    - `controlkit preprocess canny photo.jpg`
    - `controlkit preprocess canny *.jpg --out maps/ -O low_threshold=60`
    """
    import controlkit as ck
    from controlkit.recipes import png_bytes, write

    if out is not None and out.suffix and not out.is_dir() and len(files) > 1:
        raise ParameterError(
            "--out", found=f"one file for {len(files)} photographs", expected="a folder", fix="Give a folder."
        )
    pixels = parse_size(size)
    wanted = pixels[0] if pixels and size and size.isdigit() else pixels
    options: dict[str, Any] = dict(_option(text) for text in option or [])
    written: list[dict[str, str]] = []
    with progress(detector, len(files)) as advance:
        for count, file in enumerate(files, 1):
            drawn = ck.preprocess(ck.open_image(file), detector, size=wanted, **options)
            target = output_path(out, f"{file.stem}-{detector}.png")
            if target.suffix.lower() != ".png":
                raise ParameterError("--out", found=target.name, expected="a name that ends in .png")
            path = write(target, png_bytes(drawn, None), force=force, number=not force)
            written.append({"input": str(file), "map": str(path)})
            if not as_json:
                stdout.print(str(path), markup=False)
            advance(count)
    if as_json:
        emit_json(written)


def _option(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ParameterError("--option", found=repr(text), expected="KEY=VALUE, such as sigma=1.5")
    return key, parse_value(value)
