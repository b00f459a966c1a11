"""Every error controlkit raises on purpose: what was found, what was needed, what to do.

ControlKitError
├── CheckpointError          a weight file or folder (also a ValueError)
│   ├── CheckpointCorrupt    damaged: truncated, overlapping, not the format it says
│   ├── CheckpointUnsafe     would run code, or is built to exhaust memory
│   ├── NotACheckpoint       something else under a weight file's name
│   ├── Unsupported          a known format, kind or layout that cannot be honoured
│   │   └── DtypeUnsupported a dtype that the device cannot hold
│   ├── KindMismatch         a checkpoint of another kind than was asked for
│   ├── Incomplete           keys are missing
│   ├── ShapeMismatch        a tensor has another shape than its config says
│   ├── NonFinite            NaN or infinite weights
│   ├── ConfigError          config.json is malformed or cannot be built
│   │   └── ConfigMismatch   config.json is another class's (also a KindMismatch)
│   ├── FileError            unreadable, missing, not a regular file (also an OSError)
│   │   ├── ShardError       a part of a sharded checkpoint is missing, extra, or elsewhere
│   │   └── DownloadError    the hub cannot be reached, refuses, or sent something else
│   └── SaveError            could not be written; the old file is intact (also an OSError)
├── HintError                an image or map that cannot be used (also a ValueError)
│   ├── HintTooBig           more pixels than the limit
│   └── UnsupportedImage     a file format outside the allowed list
├── ParameterError           an argument out of range or of the wrong kind (also a ValueError)
│   └── BatchMismatch        counts that do not fit together
├── BaseMismatch             a control made for another base model (also a ValueError)
├── DeviceMismatch           tensors on a device where they cannot be used
├── NotApplicable            this kind cannot work in this pipeline, with the reason
├── StateError               called at the wrong moment (also a RuntimeError)
│   └── Busy                 the pipeline is in use by another thread or an outer call
├── ControlFailed            a control raised during a step; the cause is chained
├── NonFiniteAtStep          NaN or infinity appeared while sampling (also an ArithmeticError)
├── RecipeError              a recipe that cannot be read or run (also a ValueError)
└── MissingExtra             an optional dependency is not installed (also an ImportError)
"""

from __future__ import annotations

_SHOWN = 600
_NAMED = 160


class ControlKitError(Exception):
    """Base of every error raised on purpose.

    Args:
        what: The argument, file or control, as the caller named it.
        found: What was there.
        expected: What was needed.
        fix: What to do about it; always safe to follow.
        code: A stable identifier, such as ``CK-H13``, for programs.
    """

    code = "CK"

    def __init__(
        self, what: str, *, found: str = "", expected: str = "", fix: str = "", code: str | None = None
    ) -> None:
        self.what, self.found, self.expected, self.fix = what, found, expected, fix
        if code is not None:
            self.code = code
        super().__init__(str(self))

    def __str__(self) -> str:
        parts = [self.what]
        if self.found:
            parts.append(f"found {self.found}")
        if self.expected:
            parts.append(f"needed {self.expected}")
        line = "; ".join(parts)
        text = _one_line(f"{line}. {self.fix}" if self.fix else line)
        if len(text) > _SHOWN and len(self.what) > _NAMED:
            # What is long is a path or a name from a file; the fault and the remedy must not be lost for it.
            what = _one_line(self.what)
            text = f"{what[: _NAMED // 2]}…{what[-_NAMED // 2 :]}{text[len(what) :]}"
        return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.what, self.found, self.expected, self.fix, self.code))


def _one_line(text: str) -> str:
    """Without line breaks and terminal commands, which a name inside a file may hold."""
    if text.isprintable():
        return text
    return "".join(part if part.isprintable() else part.encode("unicode_escape").decode() for part in text)


def _rebuild(
    cls: type[ControlKitError], what: str, found: str, expected: str, fix: str, code: str
) -> ControlKitError:
    return cls(what, found=found, expected=expected, fix=fix, code=code)


class CheckpointError(ControlKitError, ValueError):
    """A weight file or folder that cannot be used."""

    code = "CK-L"


class CheckpointCorrupt(CheckpointError):
    """Damaged: truncated, overlapping, or not the format it says it is."""

    code = "CK-L01"


class CheckpointUnsafe(CheckpointError):
    """Would run code when read, or is built to exhaust memory."""

    code = "CK-L13"


class NotACheckpoint(CheckpointError):
    """Something else (a web page, a pointer file, a list) under a weight file's name."""

    code = "CK-L11"


class Unsupported(CheckpointError):
    """A recognised format, kind or layout that cannot be honoured."""

    code = "CK-L39"


class DtypeUnsupported(Unsupported):
    """A dtype that the device cannot hold."""

    code = "CK-L28"


class KindMismatch(CheckpointError):
    """A checkpoint of another kind than was asked for."""

    code = "CK-L20"


class Incomplete(CheckpointError):
    """Keys are missing; no half-filled model is ever returned."""

    code = "CK-L22"


class ShapeMismatch(CheckpointError):
    """A tensor has another shape than its config says."""

    code = "CK-L24"


class NonFinite(CheckpointError):
    """NaN or infinite weights."""

    code = "CK-L25"


class ConfigError(CheckpointError):
    """config.json is malformed, or describes something that cannot be built."""

    code = "CK-L30"


class ConfigMismatch(ConfigError, KindMismatch):
    """config.json describes another class than its weights are."""

    code = "CK-L30"


class FileError(CheckpointError, OSError):
    """Unreadable, missing, or not a regular file."""

    code = "CK-L35"


class ShardError(FileError):
    """A part of a checkpoint of several files is missing, is one too many, or lies elsewhere."""

    code = "CK-L33"


class DownloadError(FileError):
    """The hub could not be reached, refused, or sent something else than it lists."""

    code = "CK-L36"


class SaveError(CheckpointError, OSError):
    """Could not be written; whatever was there before is intact."""

    code = "CK-L38"


class HintError(ControlKitError, ValueError):
    """An image or map that cannot be used."""

    code = "CK-H"


class HintTooBig(HintError):
    """More pixels than the limit, known from the header alone."""

    code = "CK-H11"


class UnsupportedImage(HintError):
    """A file format outside the allowed list."""

    code = "CK-H12"


class ParameterError(ControlKitError, ValueError):
    """An argument out of range or of the wrong kind."""

    code = "CK-P"


class BatchMismatch(ParameterError):
    """Counts (maps, prompts, scales, masks) that do not fit together."""

    code = "CK-P7"


class BaseMismatch(ControlKitError, ValueError):
    """A control made for another base model."""

    code = "CK-L21"


class DeviceMismatch(ControlKitError, RuntimeError):
    """Tensors on a device where they cannot be used (meta included)."""

    code = "CK-P14"


class NotApplicable(ControlKitError, TypeError):
    """This kind of control cannot work in this pipeline; the message has the reason."""

    code = "CK-P15"


class StateError(ControlKitError, RuntimeError):
    """Called at the wrong moment: after detach, or while something changed mid-run."""

    code = "CK-R"


class Busy(StateError):
    """The pipeline is in use by another thread, or by a call further out."""

    code = "CK-R10"


class ControlFailed(ControlKitError, RuntimeError):
    """A control raised during a step; the original error is the ``__cause__``."""

    code = "CK-R1"


class NonFiniteAtStep(ControlKitError, ArithmeticError):
    """NaN or infinity appeared while sampling."""

    code = "CK-P10"


class RecipeError(ControlKitError, ValueError):
    """A recipe that cannot be read, or that cannot be run as it says."""

    code = "CK-S"


class MissingExtra(ControlKitError, ImportError):
    """An optional dependency is not installed; the message names the command."""

    code = "CK-X"


class ControlKitWarning(UserWarning):
    """Something that does not stop a run but that its user would want to know."""


class MapDoubted(ControlKitWarning):
    """A control map looks like something that its module was not trained on; see `controlkit.check_map`."""
