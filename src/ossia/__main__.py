"""Entry point of the `ossia` command: runs it and turns what goes wrong into a sentence and an exit code."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from ossia.errors import OssiaError


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 failed, 2 wrong input, 3 does not fit, 130 interrupted."""
    from ossia.cli import app

    try:
        try:
            app.build()(prog_name="ossia", standalone_mode=True)
        finally:
            sys.stdout.flush()  # so that a closed pipe is noticed here and not when Python ends
    except OssiaError as error:
        if os.environ.get("OSSIA_DEBUG"):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        _end_quietly()
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # typer caught it and would exit with 1
            _end_quietly()
        raise


def _end_quietly() -> NoReturn:
    """The reader of a pipe went away (`ossia runs ls | head`): nothing is wrong."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)


if __name__ == "__main__":
    main()
