"""What a pickle of `torch.save` holds, told by following its instructions without obeying them.

A small machine with the instructions and names that weights need and no others. Nothing is imported, called
or allocated: a name stays a name, a tensor stays a description of where its bytes would be. What it accepts
is less than what torch's restricted unpickler accepts, which comes after it.

Source:
    The meaning of the instructions is in `pickletools` of the standard library; which tensors and storages
    are written how, in `torch/serialization.py` and `torch/_utils.py` of PyTorch 2.10.
"""

from __future__ import annotations

import io
import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from controlkit.errors import (
    CheckpointCorrupt,
    CheckpointError,
    CheckpointUnsafe,
    NotACheckpoint,
    Unsupported,
)

MAX_INSTRUCTIONS = 600_000
"""Ten thousand tensors need two thirds of them."""
CONVERT = "Ask for a safetensors file, or convert it where running it does no harm."

STORAGES: dict[str, torch.dtype] = {
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.DoubleStorage": torch.float64,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "torch.ComplexFloatStorage": torch.complex64,
    "torch.ComplexDoubleStorage": torch.complex128,
    "torch.storage.UntypedStorage": torch.uint8,
}
_DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
_TENSOR = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
_TENSOR_3 = "torch._utils._rebuild_tensor_v3"
_PARAMETER = "torch._utils._rebuild_parameter"
_ORDERED = "collections.OrderedDict"
_SIZE = "torch.Size"
_ENCODE = "_codecs.encode"
_DEVICE = "torch.device"
_CALLED = (*_TENSOR, _TENSOR_3, _PARAMETER, _ORDERED, _SIZE, _ENCODE, _DEVICE)
_ODD_TENSORS = (
    "torch._utils._rebuild_qtensor",
    "torch._utils._rebuild_sparse_tensor",
    "torch._utils._rebuild_sparse_csr_tensor",
    "torch._utils._rebuild_meta_tensor_no_storage",
    "torch._utils._rebuild_nested_tensor",
    "torch._utils._rebuild_wrapper_subclass",
    "torch._tensor._rebuild_from_type_v2",
    "torch.serialization._get_layout",
    "torch._utils._rebuild_parameter_with_state",
    "torch.Tensor",
    "torch.nn.parameter.Parameter",
    "torch.QInt8Storage",
    "torch.QUInt8Storage",
    "torch.QInt32Storage",
    "torch.per_tensor_affine",
    "torch.per_channel_affine",
)
_NAMES = frozenset((*STORAGES, *_DTYPES, *_CALLED))

_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}


@dataclass(frozen=True)
class Name:
    """A class or function that the pickle mentions; never looked up."""

    name: str


@dataclass(frozen=True)
class Stored:
    """A storage: ``count`` elements of ``dtype`` under ``key``, from element ``first`` of it on."""

    key: str
    dtype: torch.dtype
    count: int
    whole: int
    first: int = 0


@dataclass(frozen=True)
class Described:
    """A tensor: its dtype, its shape, and the storage that its elements lie in."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    storage: Stored

    @property
    def size(self) -> int:
        """Bytes of a copy of it."""
        return math.prod(self.shape) * self.dtype.itemsize


class Ordered(dict[Any, Any]):
    """What would become an `OrderedDict`."""


def names_in(data: bytes) -> list[str]:
    """Names that the pickles in a row would import, as many as can be told of damaged ones too."""
    names: list[str] = []
    begin = 0
    for _ in range(5):  # before torch 1.6 a file was several pickles in a row
        texts: list[str] = []
        memo: dict[int, str] = {}
        try:
            for number, (opcode, argument, position) in enumerate(pickletools.genops(data[begin:])):
                if number > MAX_INSTRUCTIONS:
                    return names
                if opcode.name in ("GLOBAL", "INST"):
                    names.append(_dotted(str(argument)))
                elif opcode.name == "STACK_GLOBAL" and len(texts) >= 2:
                    names.append(_dotted(" ".join(texts[-2:])))
                elif opcode.name in ("MEMOIZE", "BINPUT", "LONG_BINPUT", "PUT") and texts:
                    memo[len(memo) if argument is None else int(argument or 0)] = texts[-1]
                elif opcode.name in ("BINGET", "LONG_BINGET", "GET"):
                    texts.append(memo.get(int(argument or 0), "?"))
                elif isinstance(argument, str):
                    texts.append(argument)
                if opcode.name == "STOP":
                    begin += (position or 0) + 1
        except Exception:  # a damaged pickle: what was told so far is all there is
            break
    return names


def refuse_names(data: bytes, what: str) -> None:
    """Refuse a file whose pickles mention what weights do not need.

    Raises:
        CheckpointUnsafe: Naming what it would import.
        NotACheckpoint: It is a whole module of torch and not its weights.
        Unsupported: It holds tensors of a kind that is not read.
    """
    names = names_in(data)
    strange = [name for name in dict.fromkeys(names) if name not in _NAMES]
    if not strange:
        return
    if all(name in _ODD_TENSORS for name in strange):
        raise Unsupported(
            what,
            found=f"a tensor that is quantised, sparse or of a class of its own ({strange[0]})",
            expected="plain tensors",
            fix="Save plain tensors, or use the original weights.",
            code="CK-L27",
        )
    if names[0].startswith("torch.nn.modules."):
        raise NotACheckpoint(
            what,
            found=f"a whole saved module ({names[0]})",
            expected="a dict of tensors",
            fix="Nothing of it was run. Save module.state_dict() where the module was made.",
            code="CK-L18",
        )
    raise CheckpointUnsafe(
        what,
        found=f"a pickle that calls {', '.join(name[:80] for name in strange[:3])}",
        expected="tensors and plain containers alone",
        fix=f"Nothing of it was run. {CONVERT}",
        code="CK-L13",
    )


class Machine:
    """Follows one pickle after another.

    Args:
        data: From the first pickle on; left behind the one that was followed.
        what: The file's name, for errors.
    """

    def __init__(self, data: io.BytesIO, what: str) -> None:
        self._data, self._what = data, what
        self._budget = MAX_INSTRUCTIONS
        self.storages: dict[str, Stored] = {}

    def follow(self) -> Any:
        """What the next pickle holds: plain values, with `Described` for tensors.

        Raises:
            CheckpointUnsafe: An instruction or a call that weights do not need.
            CheckpointCorrupt: It is damaged, or too long.
        """
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        try:
            for opcode, argument, _ in pickletools.genops(self._data):
                self._budget -= 1
                if self._budget < 0:
                    raise self._damaged(f"more than {MAX_INSTRUCTIONS:,} instructions", "CK-L09")
                if opcode.name == "STOP":
                    return self._stack.pop()
                self._do(opcode.name, argument)
        except CheckpointError:
            raise
        except Exception as error:  # a damaged pickle fails in dozens of ways
            raise self._damaged(
                f"a pickle that breaks off or makes no sense ({type(error).__name__})"
            ) from None
        raise self._damaged("a pickle that breaks off")

    def _do(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name in _VALUES:
            stack.append(argument)
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name == "MARK":
            self._marks.append(stack)
            self._stack = []
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            if len(stack) < count:
                raise IndexError
            stack[-count:] = [tuple(stack[-count:])]
        elif name in _AFTER_MARK:
            self._stack = self._marks.pop()
            self._close(name, stack)
        elif name == "APPEND":
            item = stack.pop()
            _list(stack[-1]).append(item)
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            self._set(stack[-1], key, value)
        elif name == "GLOBAL":
            stack.append(Name(_dotted(argument)))
        elif name == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(self._call(function, arguments))
        elif name == "BUILD":
            state = stack.pop()
            is_plain = isinstance(stack[-1], Ordered) and isinstance(state, dict)
            if not is_plain or set(state) - {"_metadata"}:
                raise self._strange("state for something that needs none")
        elif name != "PROTO":
            raise self._strange(f"the instruction {name}")

    def _close(self, name: str, items: list[Any]) -> None:
        if name == "TUPLE":
            self._stack.append(tuple(items))
        elif name == "APPENDS":
            _list(self._stack[-1]).extend(items)
        else:
            if len(items) % 2:
                raise IndexError
            for key, value in zip(items[::2], items[1::2], strict=True):
                self._set(self._stack[-1], key, value)

    def _set(self, target: Any, key: Any, value: Any) -> None:
        # Other keys (tuples nested a million deep, say) can bring an interpreter down when they are hashed.
        if not isinstance(target, dict) or not isinstance(key, str | int | float | bytes | None):
            raise TypeError
        if key in target and target[key] is not value:
            raise self._damaged(f"{key!r:.80} twice", "CK-L05")
        target[key] = value

    def _storage(self, saved: Any) -> Stored:
        kind, holder, key, _, whole, *view = saved
        key = str(key) if isinstance(key, int) else key
        is_plain = isinstance(holder, Name) and holder.name in STORAGES and isinstance(key, str)
        if kind != "storage" or not is_plain or not _is_count(whole) or len(view) > 1:
            raise self._strange("a reference to something that is no storage")
        stored = Stored(key, STORAGES[holder.name], whole, whole)
        if self.storages.setdefault(key, stored) != stored:
            raise self._damaged(f"the storage {key!r:.40} with two sizes")
        if view and view[0] is not None:
            _, first, count = view[0]
            if not _is_count(first) or not _is_count(count) or first + count > whole:
                raise self._damaged(f"a view that ends outside its storage {key!r:.40}", "CK-L07")
            return Stored(key, stored.dtype, count, whole, first)
        return stored

    def _call(self, function: Any, arguments: Any) -> Any:
        name = function.name if isinstance(function, Name) else "?"
        if not isinstance(arguments, tuple) or name not in _CALLED:
            raise self._strange(f"a call of {name[:80]}")
        arguments = list(arguments)
        if name in _TENSOR or name == _TENSOR_3:
            return self._tensor(name, *arguments)
        if name == _PARAMETER:
            data, _, hooks = arguments
            if not isinstance(data, Described) or hooks:
                raise self._strange("a parameter that is no tensor, or that brings hooks")
            return data
        if name == _ORDERED:
            made = Ordered()
            for key, value in arguments[0] if arguments else ():
                self._set(made, key, value)
            return made
        if name == _SIZE:
            return tuple(_list_of_counts(arguments[0]))
        if name == _ENCODE:
            text, encoding = arguments
            if not isinstance(text, str) or encoding != "latin1":
                raise self._strange("a text in an odd encoding")
            return text.encode("latin1")
        if len(arguments) > 2 or not isinstance(arguments[0], str):
            raise TypeError
        return Name(f"device {arguments[0]}")

    def _tensor(self, name: str, storage: Any, offset: Any, size: Any, stride: Any, *more: Any) -> Described:
        shape, steps = _list_of_counts(size), _list_of_counts(stride)
        if not isinstance(storage, Stored) or not _is_count(offset):
            raise TypeError
        if len(shape) != len(steps) or len(steps) > 64:
            raise ValueError
        dtype = storage.dtype
        needs, *rest = more or (False,)
        hooks = rest.pop(0) if rest else None
        if name == _TENSOR_3:
            dtype = _DTYPES[rest.pop(0).name]
        if not isinstance(needs, bool) or hooks or any(rest):
            raise self._strange("a tensor that brings hooks or attributes")
        if dtype != storage.dtype and storage.dtype != torch.uint8:
            raise TypeError
        last = offset + sum((length - 1) * step for length, step in zip(shape, steps, strict=True))
        if all(shape) and (last + 1) * dtype.itemsize > storage.count * storage.dtype.itemsize:
            raise self._damaged(
                f"a tensor of shape {shape!r:.60} that ends outside its storage {storage.key!r:.40}", "CK-L07"
            )
        return Described(dtype, tuple(shape), storage)

    def _damaged(self, found: str, code: str = "CK-L01") -> CheckpointCorrupt:
        fix = "The file is damaged. Download it again."
        return CheckpointCorrupt(
            self._what, found=found, expected="what torch.save writes", fix=fix, code=code
        )

    def _strange(self, found: str) -> CheckpointUnsafe:
        return CheckpointUnsafe(
            self._what,
            found=f"a pickle with {found}",
            expected="tensors and plain containers alone",
            fix=f"Nothing of it was run. {CONVERT}",
            code="CK-L14",
        )


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
_VALUES = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING")
_AFTER_MARK = ("TUPLE", "APPENDS", "SETITEMS")


def _dotted(argument: str) -> str:
    module, _, name = argument.partition(" ")
    return f"{_PYTHON_2.get(module, module)}.{name}"


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError
    return value


def _list_of_counts(values: Any) -> list[int]:
    if not isinstance(values, tuple | list) or not all(map(_is_count, values)):
        raise TypeError
    return list(values)
