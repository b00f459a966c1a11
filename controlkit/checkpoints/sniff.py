"""What a file is, told by its first bytes. Its name is only compared with that, never believed."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import IO, Literal

from controlkit.errors import CheckpointCorrupt, FileError, NotACheckpoint, Unsupported

Format = Literal["safetensors", "zip", "pickle"]

_SHORTEST = 10
"""Bytes; an empty safetensors file has as many."""
_HEAD = 1024
_WORDS = re.compile(rb"[A-Za-z0-9]{2,}[,:]? [A-Za-z]{2,}[ -~\s]*")
"""A server's answer in plain text; also a pickle of protocol 0 that is a text, which is no weights either."""
_IF_AN_ERROR = "If it is a server's error message, check the address, and whether it needs a login."
_OTHER_WEIGHTS = (
    (b"GGUF", "a GGUF file", "Convert it to safetensors, for example with stable-diffusion.cpp's converter."),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", "Load it with Keras and save its weights as safetensors."),
    (b"ggml", "a GGML file", "Convert it to safetensors."),
)
_OTHER_FILES = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file", "Fetch the file with: git lfs pull"),
    (b"\x89PNG", "a PNG picture", "Give the weights; a map goes to .on()."),
    (b"\xff\xd8\xff", "a JPEG picture", "Give the weights; a map goes to .on()."),
    (b"\x93NUMPY", "a NumPy array", "Give a weight file."),
    (b"\x1f\x8b", "a gzip archive", "Unpack it first."),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "Unpack it first."),
    (b"Rar!", "a RAR archive", "Unpack it first."),
)


def open_regular(path: Path) -> tuple[IO[bytes], int]:
    """Open a regular file for reading, unbuffered, and give its size.

    Raises:
        FileError: Missing, a folder, a pipe or device, or not readable. Never waits.
    """
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise FileError(
            str(path),
            found=reason.lower(),
            expected="a file that can be read",
            fix="Check the path and its permissions.",
            code="CK-L35",
        ) from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, socket or device"
        raise FileError(
            str(path), found=kind, expected="a regular file", fix="Give the weight file.", code="CK-L35"
        )
    return os.fdopen(descriptor, "rb", buffering=0), status.st_size


def sniff(file: IO[bytes], size: int, what: str) -> Format:
    """Tell the format of an open file, which is left at its beginning.

    Raises:
        CheckpointCorrupt: Empty, or too short to be anything.
        NotACheckpoint: A web page, a pointer, a picture, an archive.
        Unsupported: Weights in a format that is not read.
    """
    head = file.read(_HEAD) or b""
    file.seek(0)
    if not head:
        raise CheckpointCorrupt(
            what, found="an empty file", expected="weights", fix="Download it again.", code="CK-L02"
        )
    if head[:4] == b"PK\x03\x04":
        return "zip"
    is_text = head[:1] == b"{" and b"\0" not in head[:8]  # JSON, and no length
    if head[8:9] == b"{" and not is_text:
        return "safetensors"
    _refuse_others(head, what)
    if head[0] == 0x80 or _is_text_pickle(head):
        return "pickle"
    if size < _SHORTEST:
        raise CheckpointCorrupt(
            what,
            found=f"{size} bytes",
            expected=f"at least {_SHORTEST}",
            fix="The file is cut off. Download it again.",
            code="CK-L01",
        )
    if Path(what).suffix.lower() == ".safetensors":
        raise CheckpointCorrupt(
            what,
            found=f"a file that begins with {head[:12]!r}",
            expected="a safetensors header",
            fix="Download the file again.",
            code="CK-L04",
        )
    raise NotACheckpoint(
        what,
        found=f"a file that begins with {head[:12]!r}",
        expected="safetensors, or a file written by torch.save",
        fix="Check that this is the weight file.",
        code="CK-L11",
    )


def _refuse_others(head: bytes, what: str) -> None:
    for magic, name, fix in _OTHER_WEIGHTS:
        if head.startswith(magic):
            raise Unsupported(what, found=name, expected="safetensors", fix=fix, code="CK-L17")
    if head[257:262] == b"ustar":
        raise Unsupported(
            what,
            found="a tar archive, as torch wrote before version 0.4, or another one",
            expected="safetensors",
            fix="Unpack it; or load it once with torch.load of the torch that wrote it, and save it as "
            "safetensors.",
            code="CK-L17",
        )
    if head[0] in (0xDE, 0xDF) or (0x81 <= head[0] <= 0x8F and 0xA0 <= (head + bytes(1))[1] <= 0xD9):
        raise Unsupported(
            what,
            found="what looks like MessagePack, as Flax writes",
            expected="safetensors",
            fix="Load it with diffusers' from_flax=True and write it with save_pretrained().",
            code="CK-L17",
        )
    if _is_onnx(head):
        raise Unsupported(
            what,
            found="an ONNX model",
            expected="safetensors",
            fix="Give the weights that it was exported from; onnx.numpy_helper reads its own.",
            code="CK-L17",
        )
    for magic, name, fix in _OTHER_FILES:
        if head.startswith(magic):
            raise NotACheckpoint(what, found=name, expected="a weight file", fix=fix, code="CK-L11")
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<!--")):
        name, fix = "a web page", "The download went wrong: check the address, and whether it needs a login."
    elif text.startswith((b"{", b"[")) and b"\0" not in head:
        name, fix = "JSON text", f"Give the weight file or its folder, not its config. {_IF_AN_ERROR}"
    elif len(head) < _HEAD and _WORDS.fullmatch(head):
        name, fix = f"the words {head[:80].decode()!r}", _IF_AN_ERROR
    else:
        return
    raise NotACheckpoint(what, found=name, expected="a weight file", fix=fix, code="CK-L11")


def _is_onnx(head: bytes) -> bool:
    """A protocol buffer with a small version number, then its producer's name or the graph."""
    if head[0] != 0x08 or len(head) < 10 or not 1 <= head[1] <= 32:
        return False
    producer = head[4 : 4 + head[3]]
    return head[2] == 0x3A or (head[2] == 0x12 and producer.isascii())


def _is_text_pickle(head: bytes) -> bool:
    """Protocols 0 and 1 have no magic number: a mark, a container or a global, in their own letters."""
    return head[0] in b"(]}lNKMJIFSVcG" and (b"\n" in head or head[-1:] == b"." or head[0] in b"]}(")
