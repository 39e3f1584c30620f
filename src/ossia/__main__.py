"""Entry point of the `ossia` command, which converts errors to a short message and an exit code."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

from ossia.errors import OssiaError, harmless


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 failed, 2 wrong input, 3 does not fit, 130 interrupted.

    With OSSIA_DEBUG set, expected errors are raised with a traceback.
    """
    _prepare_streams()
    try:
        _prepare_signals()
        from ossia.cli import app

        try:
            app.build()(prog_name="ossia", standalone_mode=True)
        finally:
            sys.stdout.flush()  # raises the error of a closed pipe here and not when Python ends
    except OssiaError as error:
        if os.environ.get("OSSIA_DEBUG"):
            raise
        print(f"error: {harmless(str(error))}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C while Python ends would print a traceback
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        _end_quietly()
    except OSError as error:  # a folder that cannot be written, a full disk
        if os.environ.get("OSSIA_DEBUG") or (error.filename is None and error.errno != errno.ENOSPC):
            raise
        print(f"error: {harmless(str(error.filename or 'the output'))}: {error.strerror}", file=sys.stderr)
        if remedy := _remedy(error):
            print(f"  try: {remedy}", file=sys.stderr)
        sys.exit(1 if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO) else 2)
    except SystemExit as end:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if isinstance(end.__context__, BrokenPipeError):  # typer caught it and would exit with 1
            _end_quietly()
        if end.code == 130 and end.__context__ is not None and _by_ctrl_c(end.__context__):
            print("interrupted", file=sys.stderr)
        raise


def _remedy(error: OSError) -> str:
    """Return what to do about a file that cannot be written; empty where the message says it all."""
    from ossia import files, runs

    name = str(error.filename or "")
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    room = f"free some space ({files.free_bytes(Path(name)) / 1e6:.0f} MB are free there)" if is_full and name else ""
    for folder, variable in ((files.cache_folder(), "OSSIA_CACHE"), (runs.root(), "OSSIA_RUNS")):
        if name and Path(name).absolute().is_relative_to(folder.absolute()):
            return f"{room + ', or ' if room else ''}set {variable} to a folder that you may write to"
    return room


def _prepare_streams() -> None:
    """Make stdout and stderr take any text, also where they are closed or the terminal has no width."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # `ossia runs ls >&-`: there is nowhere to print to, and nothing else is wrong
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, PTH123
        elif isinstance(stream, io.TextIOWrapper):  # a terminal without Unicode gets \\u escapes, not a traceback
            stream.reconfigure(errors="backslashreplace")
    if os.environ.get("COLUMNS", "1").strip() in ("", "0"):  # some schedulers set it; rich would print nothing
        del os.environ["COLUMNS"]


def _prepare_signals() -> None:
    """Let SIGTERM (schedulers, containers) and SIGHUP (a closed terminal) end a command as Ctrl-C does."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:  # nohup ignores SIGHUP
            signal.signal(number, signal.default_int_handler)


def _by_ctrl_c(error: BaseException) -> bool:
    """Return whether typer converted a KeyboardInterrupt to this error. Commands can raise the same error."""
    return isinstance(error.__cause__ or error.__context__, KeyboardInterrupt)


def _end_quietly() -> NoReturn:
    """Exit with 0 after the reader of a pipe has closed it (`ossia runs ls | head`), which is not an error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)


if __name__ == "__main__":
    main()
