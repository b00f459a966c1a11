"""``controlkit preprocess``: from photographs, folders and videos to control maps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from controlkit.cli.console import (
    INTERRUPTED,
    complain,
    emit_json,
    output_path,
    parse_size,
    parse_value,
    progress,
    stdout,
)
from controlkit.errors import ParameterError


def preprocess(
    detector: Annotated[
        str, typer.Argument(help="Its name, or several: canny,blur. controlkit detectors lists them.")
    ],
    files: Annotated[
        list[Path], typer.Argument(help="Photographs, folders, quoted globs ('in/**/*.jpg'), or a video.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="A PNG file (for one photograph), a folder, or a video file. [default: NAME-DETECTOR.png]",
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            help="Pixels, 512 (shortest side) or 768x512 (width x height). [default: as the photograph]"
        ),
    ] = None,
    resolution: Annotated[
        str | None,
        typer.Option(
            help="Shortest side at which the detector looks, or auto (512). [default: the map's own size]"
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option", "-O", help="KEY=VALUE of the detector, DETECTOR.KEY=VALUE of one; may be repeated."
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", "-j", min=1, help="Processes for a folder. [default: one for each core]"),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Folder that keeps the maps of a folder run for others. [env: CONTROLKIT_MAP_CACHE]"
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Make what is there again and replace it; else it is kept or numbered."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was made as JSON.")] = False,
) -> None:
    """Turn photographs into control maps.

    Files become NAME-DETECTOR.png. A folder or a glob becomes OUT/DETECTOR/…, the same tree, with one line
    for each map in OUT/manifest.jsonl; run again, it keeps what is there and goes on where it was stopped.

    Examples:

    - `controlkit preprocess canny photo.jpg`
    - `controlkit preprocess canny *.jpg --out maps/ -O low_threshold=60`
    - `controlkit preprocess canny,blur photos/ --out maps/ -O blur.sigma=4`
    - `controlkit preprocess canny clip.mp4 --out edges.mp4`
    """
    from controlkit.batch.sources import is_pattern
    from controlkit.batch.video import is_video

    pixels = parse_size(size)
    sizes = {
        "size": pixels[0] if pixels and size and size.isdigit() else pixels,
        "resolution": int(resolution) if resolution and resolution.isdigit() else resolution,
    }
    chosen = _detectors(detector, option or [])
    if any(is_video(file) for file in files):
        _video(chosen, files, out, sizes, force, as_json)
    elif any(file.is_dir() or is_pattern(str(file)) for file in files):
        _folder(chosen, files, out, sizes, workers, cache, force, as_json)
    else:
        _files(chosen, files, out, sizes, force, as_json)


Chosen = dict[str, dict[str, Any]]


def _files(
    chosen: Chosen, files: list[Path], out: Path | None, sizes: dict[str, Any], force: bool, as_json: bool
) -> None:
    import controlkit as ck
    from controlkit.images import as_saved
    from controlkit.recipes import png_bytes, write

    count = len(files) * len(chosen)
    if out is not None and out.suffix and not out.is_dir() and count > 1:
        raise ParameterError(
            "--out", found=f"one file for {count} maps", expected="a folder", fix="Give a folder."
        )
    written: list[dict[str, str]] = []
    with progress(",".join(chosen), count) as advance:
        for file in files:
            photo = ck.open_image(file)
            for name, options in chosen.items():
                drawn = ck.preprocess(photo, name, **sizes, **options)
                target = output_path(out, f"{file.stem}-{name}.png")
                if target.suffix.lower() != ".png":
                    raise ParameterError("--out", found=target.name, expected="a name that ends in .png")
                picture, text = as_saved(drawn)
                path = write(target, png_bytes(picture, None, text), force=force, number=not force)
                written.append({"input": str(file), "detector": name, "map": str(path)})
                if not as_json:
                    stdout.print(str(path), markup=False)
                advance(len(written))
    if as_json:
        emit_json(written)


def _folder(
    chosen: Chosen,
    files: list[Path],
    out: Path | None,
    sizes: dict[str, Any],
    workers: int | None,
    cache: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    from controlkit.batch import preprocess_files

    if out is None or (out.suffix.lower() == ".png" and not out.is_dir()):
        raise ParameterError(
            "--out",
            found="no folder" if out is None else out.name,
            expected="a folder for the maps",
            fix="For example --out maps/.",
        )
    done = [0, 0]
    try:
        with progress(",".join(chosen), 0) as advance:

            def show(count: int, total: int) -> None:
                done[:] = count, total
                advance(count, total)

            report = preprocess_files(
                files, chosen, out, **sizes, workers=workers, force=force, cache=cache, progress=show
            )
    except KeyboardInterrupt:
        complain(f"stopped after {done[0]} of {done[1]} maps; the same command goes on from there")
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        failed = [
            {"source": one.source, "detector": one.detector, "message": one.message} for one in report.failed
        ]
        counts = {"made": report.made, "kept": report.kept, "failed": failed}
        emit_json({"out": str(report.out), "manifest": str(report.manifest), **counts})
    else:
        stdout.print(f"{report.made} made, {report.kept} kept: {report.manifest}", markup=False)
    if report.failed:
        for one in report.failed[:5]:
            complain(f"{one.detector}: {one.message}")
        complain(f"{len(report.failed)} could not be made; {report.manifest} has them all")
        raise typer.Exit(1)


def _video(
    chosen: Chosen, files: list[Path], out: Path | None, sizes: dict[str, Any], force: bool, as_json: bool
) -> None:
    from controlkit.batch import preprocess_video

    if len(files) > 1 or len(chosen) > 1:
        raise ParameterError(
            "files",
            found=f"{len(files)} files and {len(chosen)} detectors",
            expected="one video and one detector",
            fix="Run the command once for each.",
        )
    (name, options), video = next(iter(chosen.items())), files[0]
    target = out if out is not None else Path(f"{video.stem}-{name}.mp4")
    with progress(name, 0) as advance:
        frames = preprocess_video(video, name, target, **sizes, force=force, progress=advance, **options)
    if as_json:
        emit_json({"input": str(video), "detector": name, "out": str(target), "frames": frames})
    else:
        stdout.print(f"{target} ({frames} frames)", markup=False)


def _detectors(names: str, options: list[str]) -> Chosen:
    """Each detector with its options."""
    chosen: Chosen = {}
    for name in (part.strip() for part in names.split(",")):
        if not name or name in chosen:
            raise ParameterError(
                "detector", found=repr(names), expected="names with commas between them, each once"
            )
        chosen[name] = {}
    for text in options:
        key, value = _option(text)
        owner, dot, inner = key.partition(".")
        if dot and owner in chosen:
            chosen[owner][inner] = value
        elif len(chosen) == 1:
            next(iter(chosen.values()))[key] = value
        else:
            raise ParameterError(
                "--option",
                found=repr(text),
                expected="the detector's name before the option's, as there are several",
                fix=f"For example {next(iter(chosen))}.{text}.",
            )
    return chosen


def _option(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ParameterError("--option", found=repr(text), expected="KEY=VALUE, such as sigma=1.5")
    return key, parse_value(value)
