"""The maps of a video's frames, as pictures or as a video; through PyAV, imported when it is first used."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

from PIL import Image

from controlkit.batch.making import encode
from controlkit.batch.writing import clear_parts, part_of, write_whole
from controlkit.errors import ControlKitWarning, HintError, ParameterError, SaveError
from controlkit.extras import needed
from controlkit.preprocessors import build, preprocess

VIDEOS = frozenset((".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v"))
"""Names that end so are videos."""

_CODECS = ("libx264", "mpeg4")
_QUALITY = {"libx264": {"crf": "12", "preset": "veryfast"}, "mpeg4": {"qscale": "2"}}


def is_video(path: str | os.PathLike[str]) -> bool:
    """Whether a name ends as a video's does."""
    return Path(path).suffix.lower() in VIDEOS


def preprocess_video(
    source: str | os.PathLike[str],
    detector: str,
    out: str | os.PathLike[str],
    *,
    size: int | tuple[int, int] | None = None,
    resolution: int | str | None = None,
    any_aspect: bool = False,
    force: bool = False,
    progress: Any = None,
    **options: Any,
) -> int:
    """Make the control maps of a video's frames.

    Frames are turned as the video says. Maps as a video are compressed (H.264, visually lossless) and have no
    sound; maps as pictures are exact.

    Args:
        source: A video file, of any format that PyAV reads.
        detector: Its name.
        out: A file that ends in ``.mp4``, ``.mkv`` or ``.mov``: one video, with the size of the source's
            frames and their times. Anything else: a folder, of ``000000.png``, ``000001.png``, …; frames that
            are there already are kept where they were made of the same frame in the same way.
        size: As for `preprocess`.
        resolution: As for `preprocess`.
        any_aspect: As for `preprocess`.
        force: Replace files that are there.
        progress: Called with (done, all) after each frame; all is 0 where the video does not say.
        **options: The detector's own.

    Returns:
        How many frames there are.

    Raises:
        MissingExtra: PyAV is not installed.
        HintError: The video cannot be read, or holds no pictures.
        ParameterError: No such detector or option.
        SaveError: ``out`` cannot be written, or is there.
    """
    path, target = Path(source), Path(out)
    maker = build(detector, **options)
    if not path.is_file():
        raise HintError(
            str(path),
            found="no such file" if not path.exists() else "not a file",
            expected="a video file",
            fix="Check the path; of a folder of pictures, use preprocess_files.",
            code="CK-H22",
        )

    def maps() -> Iterator[tuple[Image.Image, Any, Any]]:
        for count, (picture, frame, stream) in enumerate(_frames(path), 1):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ControlKitWarning)
                drawn = preprocess(picture, maker, size=size, resolution=resolution, any_aspect=any_aspect)
            yield drawn, frame, stream
            if progress is not None:
                progress(count, stream.frames)

    if is_video(target):
        if target.exists() and not force:
            raise SaveError(
                str(target), found="a file of that name", expected="a free name", fix="Use force."
            )
        return _write_video(maps(), target)
    return _write_frames(maps(), target, force)


def pyav() -> Any:
    """The module ``av``.

    Raises:
        MissingExtra: It is not installed, or does not load.
    """
    return needed("av", "videos need PyAV", '"controlkit[video]"')


def _frames(path: Path) -> Iterator[tuple[Image.Image, Any, Any]]:
    """Pictures, upright, each with PyAV's frame and stream."""
    av = pyav()
    try:
        with av.open(os.fspath(path)) as container:
            stream = next(iter(container.streams.video), None)
            if stream is None:
                raise HintError(path.name, found="no pictures in it", expected="a video", code="CK-H10")
            seen = False
            for frame in container.decode(stream):
                seen = True
                turn = int(getattr(frame, "rotation", 0) or 0) % 360
                picture = frame.to_image()
                yield picture.rotate(turn, expand=True) if turn else picture, frame, stream
            if not seen:
                raise HintError(path.name, found="no frames in it", expected="a video", code="CK-H10")
    except av.error.FFmpegError as error:
        raise HintError(
            path.name,
            found=f"a video that cannot be read ({error})"[:200],
            expected="a complete video",
            fix="Play it elsewhere; where that works, convert it to MP4.",
            code="CK-H10",
        ) from error


def _write_frames(maps: Iterator[tuple[Image.Image, Any, Any]], folder: Path, force: bool) -> int:
    count = 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        clear_parts(folder)
        for drawn, _, _ in maps:
            told = drawn.info["controlkit"]
            png = encode(drawn, {**told, "frame": count})
            path = folder / f"{count:06d}.png"
            if force or not path.exists():
                write_whole(path, png)
            elif path.read_bytes() != png:
                raise SaveError(
                    str(path), found="another picture of that name", expected="a free name", fix="Use force."
                )
            count += 1
    except OSError as error:
        raise _cannot(folder, error) from error
    return count


def _write_video(maps: Iterator[tuple[Image.Image, Any, Any]], target: Path) -> int:
    av = pyav()
    codec = next(name for name in _CODECS if name in av.codecs_available)
    part = part_of(target)
    count, last, first = 0, -1, 0
    kind = {"mp4": "mp4", "m4v": "mp4", "mov": "mov", "mkv": "matroska"}.get(target.suffix.lower()[1:])
    if kind is None:
        raise ParameterError(
            "out", found=target.name, expected="a name that ends in .mp4, .mov or .mkv", fix="Or a folder."
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            container = stream = None
            for drawn, frame, source in maps:
                if container is None or stream is None:
                    container = stack.enter_context(av.open(os.fspath(part), "w", format=kind))
                    rate = source.average_rate or source.base_rate or Fraction(25)
                    stream = container.add_stream(codec, rate=rate, options=_QUALITY[codec])
                    stream.width, stream.height = drawn.size
                    even = drawn.width % 2 == 0 and drawn.height % 2 == 0
                    stream.pix_fmt = "yuv420p" if even or codec != "libx264" else "yuv444p"
                    stream.codec_context.time_base = source.time_base
                    first = frame.pts or 0
                shown = av.VideoFrame.from_image(drawn)
                shown.time_base = source.time_base
                last = shown.pts = (
                    max(last + 1, (frame.pts or 0) - first) if frame.pts is not None else last + 1
                )
                container.mux(stream.encode(shown))
                count += 1
            if container is not None and stream is not None:
                container.mux(stream.encode())
        os.replace(part, target)
    except av.error.FFmpegError as error:
        raise SaveError(str(target), found=f"a failure of the encoder ({error})"[:200]) from error
    except OSError as error:
        raise _cannot(target, error) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    return count


def _cannot(path: Path, error: OSError) -> Exception:
    if isinstance(error, (SaveError, HintError)):
        return error
    reason = (error.strerror or str(error)).lower()
    return SaveError(str(path), found=reason, expected="a folder that can be written to")
