"""The one place where errors become exit codes, and results become JSON or text.

stdout carries the result only (one JSON document under `--json`); messages and progress bars go to
stderr. Exit codes are a contract: see `segdeploy.core.errors`. A command that fails before it has a
result answers `--json` with `{"error": {"kind", "message", "hint", "exit_code"}}`.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from contextvars import ContextVar
from typing import Annotated, Any, TextIO, cast

import typer

from segdeploy.core.errors import SegDeployError
from segdeploy.core.trust import allow_code
from segdeploy.frameworks.progress import QUIET, is_quiet

EXIT_BUG = 70
VERBOSE = "SEGDEPLOY_VERBOSE"
EXIT_INTERRUPTED = 130
_ENVIRONMENT_ERRNOS = {
    errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO,
    errno.ENOTDIR, errno.ENAMETOOLONG, errno.EMFILE, errno.EISDIR, errno.ELOOP, errno.ENOMEM,
}  # fmt: skip


# Typer carries its own copy of click in some releases: take the class from typer itself.
UsageProblem = cast(
    type[typer.BadParameter],
    next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException"),
)

app = typer.Typer(
    name="segdeploy",
    help="Train, export, verify, evaluate, benchmark and ship semantic segmentation models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _allow(is_given: bool) -> bool:
    if is_given:
        allow_code()
    return is_given


_results: ContextVar[TextIO | None] = ContextVar("results")
_has_answered: ContextVar[bool] = ContextVar("has_answered", default=False)


def _reserve_stdout(is_given: bool) -> bool:
    """Keep stdout for the document: what foreign code prints meanwhile goes to stderr."""
    if is_given:
        _results.set(sys.stdout)
        sys.stdout = sys.stderr
    return is_given


JSON = Annotated[
    bool,
    typer.Option(
        "--json", callback=_reserve_stdout, help="One JSON document on stdout, nothing else."
    ),
]
# Of every command that opens a checkpoint. The flag acts by itself; commands need not look at it.
ALLOW_CODE = Annotated[
    bool,
    typer.Option(
        "--allow-code",
        callback=_allow,
        help="Import the code of a model package.module:callable that a checkpoint names.",
    ),
]
VERBOSITY = {"-q": QUIET, "--quiet": QUIET, "-v": VERBOSE, "--verbose": VERBOSE}


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
    _verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show where an error arose.")
    ] = False,
    _quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Errors only on stderr.")] = False,
) -> None:
    """Options that every command understands, at any place of the line."""
    if version:
        from importlib import metadata

        print(metadata.version("segdeploy"))  # noqa: T201
        raise typer.Exit


def take_verbosity(arguments: list[str]) -> list[str]:
    """Note -v and -q wherever they stand (before a `--`), and return the other arguments."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    for argument in arguments[:end]:
        if argument in VERBOSITY:
            os.environ[VERBOSITY[argument]] = "1"
    return [a for a in arguments[:end] if a not in VERBOSITY] + arguments[end:]


def run_app() -> int:
    """Run the command line and return its exit code."""
    stdout = sys.stdout
    token, answered = _results.set(stdout), _has_answered.set(False)
    try:
        return _run()
    finally:
        sys.stdout = stdout
        _results.reset(token)
        _has_answered.reset(answered)


def _run() -> int:
    try:
        code = app(take_verbosity(sys.argv[1:]), standalone_mode=False)
    except SegDeployError as error:
        if os.environ.get(VERBOSE):
            traceback.print_exc()
        say(f"error: {error}")
        return _answer(type(error).__name__, error.message, error.hint, error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        say("interrupted")
        return EXIT_INTERRUPTED
    except UsageProblem as error:
        error.show(sys.stderr)
        return _answer("UsageError", error.format_message(), "See --help.", 2)
    except (BrokenPipeError, SystemExit):  # Whoever read our messages is gone; rich says it so.
        return EXIT_INTERRUPTED
    except Exception as error:  # noqa: BLE001  the last resort: whatever is not of our tree
        return _end_foreign(error)
    if code == EXIT_INTERRUPTED:
        say("interrupted")
    return code if isinstance(code, int) else 0


def _end_foreign(error: Exception) -> int:
    """Return the exit code of an error outside our tree: the machine's limits, or a bug."""
    is_loop = "Symlink loop" in str(error)  # Before Python 3.13 `Path.resolve` has no class for it.
    if is_loop or (isinstance(error, OSError) and error.errno in _ENVIRONMENT_ERRNOS):
        say(f"error: {error}")
        return _answer(type(error).__name__, str(error), "", 2)
    if not _is_out_of_memory(error):
        return _bug(error)
    what = f"Out of memory: {str(error).splitlines()[0] if str(error) else 'no details'}"
    hint = "Use smaller sizes or batches, or fewer processes."
    say(f"error: {what}\n{hint}")
    return _answer("MemoryError", what, hint, 2)


def _answer(kind: str, message: str, hint: str, exit_code: int) -> int:
    """Print an error as the JSON document, where one is due; pass the code on."""
    arguments = sys.argv[1:]
    asked = arguments[: arguments.index("--")] if "--" in arguments else arguments
    if "--json" in asked and not _has_answered.get():
        said = {"kind": kind, "message": message, "hint": hint, "exit_code": exit_code}
        emit({"error": said}, True, lambda: None)
    return exit_code


def _is_out_of_memory(error: BaseException) -> bool:
    """Python and NumPy have a class for it; torch says it in words on the CPU."""
    is_named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return is_named or "DefaultCPUAllocator: can't allocate memory" in str(error)


def _bug(error: Exception) -> int:
    traceback.print_exc()
    say("This is a bug in segdeploy; please report the lines above.")
    return _answer(type(error).__name__, str(error), "This is a bug in segdeploy.", EXIT_BUG)


def say(message: str) -> None:
    """Print one message for people, on stderr."""
    is_wanted = not is_quiet() or message.startswith("error:")
    if is_wanted and sys.stderr is not None:  # `print` to None would print to stdout.
        print(message, file=sys.stderr, flush=True)  # noqa: T201


def emit(document: Any, as_json: bool, render: Callable[[], None]) -> None:
    """Print the result: the JSON document alone on stdout, or what `render` prints."""
    _has_answered.set(True)
    with redirect_stdout(_results.get(sys.stdout)):
        try:
            if as_json:
                print(json.dumps(document, indent=2, allow_nan=False))  # noqa: T201
            else:
                render()
            if sys.stdout is not None:
                sys.stdout.flush()
        except (BrokenPipeError, SystemExit):  # rich turns the one into the other.
            _drop_stdout()  # `| head -1`: the work is done, and its exit code still counts.


def _drop_stdout() -> None:
    """Send what is left in the buffer nowhere, or the interpreter's own flush would fail."""
    with suppress(OSError, ValueError):
        handle = os.open(os.devnull, os.O_WRONLY)
        os.dup2(handle, sys.stdout.fileno())
        os.close(handle)
