"""Entry point of the `ossia` command: runs it and turns what goes wrong into a sentence and an exit code."""

from __future__ import annotations

import os
import sys

from ossia.errors import OssiaError


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 failed, 2 wrong input, 3 does not fit, 130 interrupted."""
    from ossia.cli import app

    try:
        app.build()(prog_name="ossia", standalone_mode=True)
    except OssiaError as error:
        if os.environ.get("OSSIA_DEBUG"):
            raise
        sys.stdout.flush()
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of a pipe went away (`ossia runs ls | head`); nothing is wrong.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


if __name__ == "__main__":
    main()
