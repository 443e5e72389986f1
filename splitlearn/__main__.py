"""`python -m splitlearn`, and the command `splitlearn`: what launch.py is in a clone."""

import os
import signal
import sys

from splitlearn.stopping import SIGNALS, end_at_once


def main() -> None:
    """Starts a run or a sweep as the command line says, and ends this process."""
    is_torchruns = "TORCHELASTIC_RUN_ID" in os.environ
    # Of torchrun's ranks one is enough to speak; its SIGTERM comes after a failure that is told already.
    end_at_once(() if not is_torchruns else (signal.SIGTERM,) if os.environ["RANK"] == "0" else SIGNALS)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else each peer that leaves is a warning of RPC's
    from splitlearn import forking  # after end_at_once, as all that takes long

    if not is_torchruns and forking.forks(sys.argv[1:]):
        with forking.no_threads():
            from splitlearn import launch  # takes seconds, as torch does
        forking.start_from_here()
    else:
        from splitlearn import launch
    sys.exit(launch.start())


if __name__ == "__main__":
    main()
