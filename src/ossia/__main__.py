"""Entry point of the `ossia` command, which converts errors to a short message and an exit code."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import NoReturn

from ossia.errors import OssiaError, harmless


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 failed, 2 wrong input, 3 does not fit, 130 interrupted.

    With OSSIA_DEBUG set, expected errors are raised with a traceback.
    """
    from ossia.cli import app

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without Unicode shows \\u escapes, not a traceback
            stream.reconfigure(errors="backslashreplace")
    try:
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
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        _end_quietly()
    except OSError as error:  # a folder that cannot be written, a full disk
        if os.environ.get("OSSIA_DEBUG") or (error.filename is None and error.errno != errno.ENOSPC):
            raise
        print(f"error: {harmless(str(error.filename or 'the output'))}: {error.strerror}", file=sys.stderr)
        sys.exit(1 if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO) else 2)
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # typer caught this error and would exit with 1
            _end_quietly()
        if end.code == 130 and end.__context__ is not None and _by_ctrl_c(end.__context__):
            print("interrupted", file=sys.stderr)
        raise


def _by_ctrl_c(error: BaseException) -> bool:
    """Return whether typer converted a KeyboardInterrupt to this error. Commands can raise the same error."""
    return isinstance(error.__cause__ or error.__context__, KeyboardInterrupt)


def _end_quietly() -> NoReturn:
    """Exit with 0 after the reader of a pipe has closed it (`ossia runs ls | head`), which is not an error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)


if __name__ == "__main__":
    main()
