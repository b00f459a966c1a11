"""Weight files changed with knowledge of their structure; `judging.py` sees what becomes of them.

A mutation is drawn from a seed and a number, so that every file can be made again.
"""

from __future__ import annotations

import io
import json
import pickle
import pickletools
import random
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from controlkit.checkpoints.save import _serialise
from tests import tiny
from tests.checkpoints.files import adapter

Format = Literal["safetensors", "zip", "legacy"]
Mutator = Callable[[bytes, random.Random], bytes]
CONFIGS: dict[str, dict[str, Any]] = {
    "controlnet-diffusers": {"attention_head_dim": 8, "norm_num_groups": 32},
    "controlnet-ldm": {"num_heads": 8},
}
"""What shapes of a seed do not tell."""
SUFFIXES: dict[Format, str] = {"safetensors": ".safetensors", "zip": ".pth", "legacy": ".bin"}
ODD_NUMBERS = (0, 1, -1, 2, 7, 8, 255, 256, 65535, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 63) - 1, 1 << 64)


def seeds() -> dict[str, dict[str, Tensor]]:
    """State dicts of several layouts and kinds, small."""
    net = tiny.controlnet(
        block_out_channels=(32, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        norm_num_groups=32,
        attention_head_dim=8,
    )
    original = adapter().original_state()
    return {
        "t2i-diffusers": dict(adapter().state_dict()),
        "t2i-original": dict(original),
        "t2i-wrapped": {f"module.{name}": tensor for name, tensor in original.items()},
        "t2i-half": {name: tensor.half() for name, tensor in adapter().state_dict().items()},
        "controlnet-diffusers": dict(net.state_dict()),
        "controlnet-ldm": dict(net.original_state()),
    }


def file_of(tensors: Mapping[str, Tensor], made: Format) -> bytes:
    """The bytes of a file in one of the three formats."""
    if made == "safetensors":
        return b"".join(map(bytes, _serialise(dict(tensors))))
    buffer = io.BytesIO()
    torch.save(dict(tensors), buffer, _use_new_zipfile_serialization=made == "zip")
    return buffer.getvalue()


# Any file.
def flip(content: bytes, chance: random.Random) -> bytes:
    """Some bits, anywhere."""
    changed = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 8))):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def flip_early(content: bytes, chance: random.Random) -> bytes:
    """Some bytes where the structure is: at the beginning, or at the end."""
    changed = bytearray(content)
    for _ in range(chance.choice((1, 2, 4))):
        place = chance.randrange(min(len(changed), 3000))
        changed[place if chance.random() < 0.6 else -1 - place] = chance.randrange(256)
    return bytes(changed)


def cut(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.choice((chance.randrange(len(content)), chance.randrange(200)))]


def extend(content: bytes, chance: random.Random) -> bytes:
    more = chance.randbytes(chance.choice((1, 8, 22, 300)))
    return chance.choice((content + more, more + content, content + content, content + content[-100:]))


def splice(content: bytes, chance: random.Random) -> bytes:
    """A part left out, doubled or moved."""
    first, last = sorted(chance.randrange(len(content)) for _ in range(2))
    part = content[first:last]
    place = chance.randrange(len(content))
    return chance.choice(
        (content[:first] + content[last:], content[:last] + content[first:], content[:place] + part)
    )


# Safetensors.
def header_text(content: bytes, chance: random.Random) -> bytes:
    """Characters of the header, with the length mended or not."""
    length = int.from_bytes(content[:8], "little")
    text, data = content[8 : 8 + length], content[8 + length :]
    first = chance.randrange(len(text))
    part = chance.choice(
        (b'"', b"{", b"}", b"[", b"]", b",", b":", b"9", b"-", b"\\u0000", b"\xff", b"1e9", b"")
    )
    text = text[:first] + part + text[first + chance.randrange(4) :]
    return (len(text) if chance.random() < 0.8 else length).to_bytes(8, "little") + text + data


def header_values(content: bytes, chance: random.Random) -> bytes:
    """One value of the header: a dtype, a length, an offset, a name."""
    length = int.from_bytes(content[:8], "little")
    listed: dict[str, Any] = json.loads(content[8 : 8 + length])
    names = [name for name in listed if name != "__metadata__"]
    name, other = chance.choice(names), chance.choice(names)
    entry = listed[name]
    kind = chance.randrange(13)
    if kind == 0:
        entry["dtype"] = chance.choice(
            ("F16", "BF16", "F32", "F64", "I32", "I8", "BOOL", "F8_E4M3", "F4", "", 7)
        )
    elif kind == 1 and entry["shape"]:
        entry["shape"][chance.randrange(len(entry["shape"]))] = chance.choice(ODD_NUMBERS)
    elif kind == 2:
        entry["data_offsets"][chance.randrange(2)] = chance.choice(
            (*ODD_NUMBERS, entry["data_offsets"][0] + 1)
        )
    elif kind == 3:
        entry["data_offsets"], listed[other]["data_offsets"] = (
            listed[other]["data_offsets"],
            entry["data_offsets"],
        )
    elif kind == 4:
        listed[name], listed[other] = listed[other], listed[name]
    elif kind == 5:
        listed.pop(name)
    elif kind == 6:
        listed[chance.choice((name + "x", "", "\0", "a" * 2000, "__metadata__", name.upper()))] = listed.pop(
            name
        )
    elif kind == 7:
        entry["shape"] = chance.choice((entry["shape"][::-1], [*entry["shape"], 1], [], None, [0], "2"))
    elif kind == 8:
        entry[chance.choice(("dtype", "shape", "data_offsets", "extra"))] = chance.choice(
            (None, {}, [], 1.5, True)
        )
    elif kind == 9:
        listed["__metadata__"] = chance.choice(
            ({"format": "np"}, {"condition": "x" * 99}, None, [], {"a": {}})
        )
    elif kind == 10:
        step = chance.choice((-4, 4, 8))
        entry["data_offsets"] = [offset + step for offset in entry["data_offsets"]]
    elif kind == 11:
        listed[name + ".more"] = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    else:
        listed[name] = listed[other]
    text = json.dumps(listed).encode()
    if chance.random() < 0.05:
        text = text.replace(b"}", b',"dtype":"F16"}', 1)
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def header_length(content: bytes, chance: random.Random) -> bytes:
    length = int.from_bytes(content[:8], "little")
    number = chance.choice((*ODD_NUMBERS, length - 1, length + 1, length * 2, chance.getrandbits(64)))
    return (number % (1 << 64)).to_bytes(8, "little") + content[8:]


def payload(content: bytes, chance: random.Random) -> bytes:
    """Numbers in the second half of the file, where every format has its weights."""
    changed = bytearray(content)
    place = chance.randrange(len(changed) // 2, len(changed) - 8)
    part = chance.choice((b"\0\0\xc0\x7f", b"\0\0\x80\xff", bytes(4), b"\xff" * 4, chance.randbytes(4)))
    changed[place : place + 4] = part
    return bytes(changed)


# Pickles.
def opcodes(data: bytes, chance: random.Random) -> bytes:
    """One instruction of a pickle: left out, doubled, moved, or with another argument."""
    try:
        places = [position or 0 for _, _, position in pickletools.genops(data)]
    except Exception:  # changed before
        return flip(data, chance)
    number = chance.randrange(len(places))
    first = places[number]
    last = places[number + 1] if number + 1 < len(places) else len(data)
    part = data[first:last]
    kind = chance.randrange(7)
    if kind == 0:
        return data[:first] + data[last:]
    if kind == 1:
        return data[:last] + part + data[last:]
    if kind == 2:
        place = chance.choice(places)
        return data[:place] + part + data[place:]
    if kind == 3:
        return data[:first] + bytes([chance.randrange(256)]) + data[first + 1 :]
    if kind == 4 and len(part) > 1:
        place = first + chance.randrange(1, len(part))
        return data[:place] + bytes([chance.randrange(256)]) + data[place + 1 :]
    if kind == 5:
        new = chance.choice(INSTRUCTIONS)
        return data[:first] + new + data[first if chance.random() < 0.5 else last :]
    number = chance.choice(ODD_NUMBERS)
    return data[:first] + pickle.dumps(number, protocol=2)[2:-1] + data[last:]


INSTRUCTIONS = (
    b"N", b"\x88", b")", b"]", b"}", b"(", b"t", b"\x85", b"\x86", b"\x87", b"R", b"b", b"s", b"u", b"Q",
    b"0", b"2", b"h\0", b"q\0", b"\x8f", b"\x93", b"\x94", b"\x82\1", b"c__builtin__\nexec\n",
    b"ctorch\nHalfStorage\n",
    b"ctorch\nLongStorage\n", b"ctorch._utils\n_rebuild_parameter\n", b"ccollections\nOrderedDict\n",
    b"ctorch\nFloatTensor\n", b"X\1\0\0\0x", b"\x8a\x0a" + b"\xff" * 10, b".",
)  # fmt: skip


def _rezip(content: bytes, change: Callable[[str, bytes], bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        for entry in old.infolist():
            new.writestr(entry.filename, change(entry.filename, old.read(entry)))
    return buffer.getvalue()


def _all(content: bytes, mark: bytes) -> Iterator[int]:
    place = content.find(mark)
    while place >= 0:
        yield place
        place = content.find(mark, place + 1)


def zip_pickle(content: bytes, chance: random.Random) -> bytes:
    """An instruction of the pickle in an archive that is whole otherwise."""
    return _rezip(content, lambda name, data: opcodes(data, chance) if name.endswith("data.pkl") else data)


def zip_entries(content: bytes, chance: random.Random) -> bytes:
    """Entries left out, doubled, renamed, shortened, lengthened, compressed."""
    kind, chosen = chance.randrange(7), chance.random()
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        entries = old.infolist()
        target = entries[int(chosen * len(entries))].filename
        for entry in entries:
            name, data, how = entry.filename, old.read(entry), zipfile.ZIP_STORED
            if name == target:
                if kind == 0:
                    continue
                if kind == 1:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        new.writestr(name, data)
                name = (
                    chance.choice((name[:-1], name.upper(), "../" + name, "a/" + name)) if kind == 2 else name
                )
                data = data[: chance.randrange(len(data) + 1)] if kind == 3 else data
                data = data + chance.randbytes(4) if kind == 4 else data
                how = zipfile.ZIP_DEFLATED if kind == 5 else how
                data = flip(data, chance) if kind == 6 and data else data
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                new.writestr(name, data, how)
    return buffer.getvalue()


def zip_directory(content: bytes, chance: random.Random) -> bytes:
    """A byte of a header or of the directory."""
    marks = (b"PK\1\2", b"PK\3\4", b"PK\5\6", b"PK\6\6", b"PK\6\7")
    places = [place for mark in marks for place in _all(content, mark)]
    changed = bytearray(content)
    place = chance.choice(places) + chance.randrange(46)
    if place < len(changed):
        changed[place] = chance.choice((0, 1, 8, 255, chance.randrange(256)))
    return bytes(changed)


def legacy_pickle(content: bytes, chance: random.Random) -> bytes:
    """An instruction of one of the five pickles in a row."""
    places = [0]
    stream = io.BytesIO(content)
    for _ in range(5):
        for _ in pickletools.genops(stream):
            pass
        places.append(stream.tell())
    number = chance.choice((0, 1, 2, 3, 3, 3, 4, 4))
    first, last = places[number], places[number + 1]
    return content[:first] + opcodes(content[first:last], chance) + content[last:]


def legacy_counts(content: bytes, chance: random.Random) -> bytes:
    """The number of elements before a storage."""
    stream = io.BytesIO(content)
    for _ in range(5):
        for _ in pickletools.genops(stream):
            pass
    place = stream.tell()
    number = chance.choice((*ODD_NUMBERS, 3, 9)) % (1 << 64)
    return content[:place] + number.to_bytes(8, "little") + content[place + 8 :]


ANY: tuple[Mutator, ...] = (flip, flip_early, cut, extend, splice, payload)
MUTATORS: dict[Format, tuple[Mutator, ...]] = {
    "safetensors": (
        *ANY,
        header_text,
        header_text,
        header_values,
        header_values,
        header_values,
        header_length,
    ),
    "zip": (*ANY, zip_pickle, zip_pickle, zip_pickle, zip_entries, zip_entries, zip_directory, zip_directory),
    "legacy": (*ANY, legacy_pickle, legacy_pickle, legacy_pickle, legacy_counts),
}


def mutants(made: Format, count: int, seed: int = 0) -> Iterator[tuple[str, str, bytes, bytes]]:
    """Changed files: what was done to them, the seed, the file, and the whole one it was made from."""
    whole = {name: file_of(tensors, made) for name, tensors in seeds().items()}
    for number in range(count):
        chance = random.Random(f"{made} {seed} {number}")
        name = chance.choice(list(whole))
        content, done = whole[name], []
        while not done or content == whole[name] or chance.random() < 0.15:
            mutate = chance.choice(MUTATORS[made])
            try:
                content = mutate(content, chance) or b"\0"
            except Exception:  # a structure that an earlier mutation has destroyed
                content = flip(content, chance)
            done.append(getattr(mutate, "__name__", "?"))
        yield f"{made} {number} {name}: {', '.join(done)}", name, content, whole[name]
