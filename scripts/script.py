"""What every script begins and ends with: it finds splitlearn and a user's own modules, and tells in a line what a user
can mend."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that they run from a clone that is not installed

from splitlearn.console import drop_output, forgive, is_unread
from splitlearn.errors import UserError

ROOT = Path(__file__).parents[1]


def start(main: Callable[[], None]) -> None:
    """Runs a script; a user's mistake, Ctrl-C, and a reader that has read enough, as in `| head`, have no traceback."""
    forgive(sys.stdout, sys.stderr)
    sys.path.append(os.getcwd())  # where a user's own data set, network or exchange is, as in launch.py
    try:
        main()
        if sys.stdout is not None:  # as where the shell has closed it
            sys.stdout.flush()
    except UserError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        if not is_unread():  # another one is a socket's
            raise
        drop_output()
        sys.exit(1)
    except OSError as error:
        if error.filename is None:
            raise
        sys.exit(f"{error.filename}: {error.strerror}")
