"""The command line as a whole: its commands, and how errors become one sentence and an exit code.

Exit codes: 0 done; 1 failed; 2 wrong usage (unknown options, values out of range); 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer

import controlkit
from controlkit.cli.console import INTERRUPTED, complain
from controlkit.errors import ControlKitError, ControlKitWarning, ParameterError

app = typer.Typer(
    name="controlkit",
    help="Control for text-to-image diffusion: edges, depth and more steer what is drawn.",
    epilog="Put --debug anywhere to see the full traceback of an error.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"controlkit {controlkit.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


def _register() -> None:
    from controlkit.cli.checking import check_map
    from controlkit.cli.convert import convert
    from controlkit.cli.demo import demo
    from controlkit.cli.detectors import detectors
    from controlkit.cli.generate import generate
    from controlkit.cli.inspecting import inspect
    from controlkit.cli.models import models
    from controlkit.cli.preprocess import preprocess
    from controlkit.cli.ui import ui

    for command in (demo, generate, preprocess, detectors, check_map, inspect, convert, models, ui):
        app.command(no_args_is_help=command in (generate, preprocess, check_map, inspect, convert))(command)


_register()

_USAGE_ERROR: Any = typer.BadParameter.__mro__[1]
_CLI_ERROR: Any = typer.BadParameter.__mro__[2]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: What follows the program's name; None: `sys.argv`.

    Returns:
        The exit code.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its advice on import is no news of a command
    given = list(sys.argv[1:] if arguments is None else arguments)
    plain = given[: given.index("--")] if "--" in given else given
    debug = "--debug" in plain or bool(os.environ.get("CONTROLKIT_DEBUG"))
    if "--debug" in plain:
        given.remove("--debug")
    try:
        with warnings.catch_warnings():
            if not debug:
                _only_our_warnings()
            code = app(given, prog_name="controlkit", standalone_mode=False)
        if code == INTERRUPTED:  # typer has caught it
            complain("interrupted")
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        complain("interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone; nothing is wrong
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (stays open until the interpreter ends)
        return 1
    except Exception as error:
        if debug:
            raise
        return _explain(error)


def _only_our_warnings() -> None:
    """Our own warnings are notes, one sentence each; those of libraries are for programmers."""

    def show(message: Warning | str, *_details: Any, **_more: Any) -> None:
        complain(f"note: {message}")

    warnings.simplefilter("ignore")
    warnings.simplefilter("always", ControlKitWarning)
    warnings.showwarning = show


def _explain(error: Exception) -> int:
    if isinstance(error, ControlKitError):
        complain(str(error))
        return 2 if isinstance(error, ParameterError) else 1
    if isinstance(error, _USAGE_ERROR):
        context: Any = getattr(error, "ctx", None)
        command = context.command_path if context else "controlkit"
        if text := _message(error).strip(". "):  # without arguments, the help is all there is to say
            complain(f"{text}. See {command} --help.")
        return 2
    if isinstance(error, _CLI_ERROR):
        complain(_message(error))
        return 1
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        complain(f"{place}{(error.strerror or str(error)).lower()}")
        return 1
    if isinstance(error, MemoryError):
        complain("out of memory; make smaller pictures (--size)")
        return 1
    first = (str(error).strip() or "no message").splitlines()[0]
    complain(f"unexpected {type(error).__name__}: {first[:300]} (run again with --debug for details)")
    return 1


def _message(error: Any) -> str:
    text = " ".join(str(error.format_message()).split())
    return text if text.endswith((".", "?")) else f"{text}."
