"""The process that the ranks on this machine are forked from: it has imported torch for all, and has started no thread.

Its imports take as many seconds as those of the process that starts it, which therefore starts it first.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Sequence
from multiprocessing import forkserver, resource_tracker
from pathlib import Path

IMPORTS = ["splitlearn.orphan", "splitlearn.worker", "sklearn.datasets", "sklearn.model_selection"]  # of the digits
_ELSEWHERE = ("role=", "cut=?", "hydra/launcher=")  # words of a command line that forks no ranks from here


def forks(words: Sequence[str]) -> bool:
    """Whether a command line, without its first word, starts all ranks of a run on this machine, as far as it shows."""
    options = {word for word in words if word.startswith("-")}
    return options <= {"-m", "--multirun"} and not any(word.startswith(_ELSEWHERE) for word in words)


def start() -> multiprocessing.context.ForkServerContext:
    """Starts that process, which then imports on its own what ranks need; once is enough."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTS)
    # Python 3.11 gives it no sys.path, and says nothing if it cannot import: each rank would then import for itself.
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), path]))
    # Ctrl-C is the parent's business: in a process that starts Python it would be a traceback.
    resource_tracker.ensure_running()  # which unblocks it when it is started
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        del os.environ["PYTHONPATH"]
        if path is not None:
            os.environ["PYTHONPATH"] = path
    return context
