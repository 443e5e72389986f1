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
    before = dict(os.environ)
    # Python 3.11 gives it no sys.path, and says nothing if it cannot import: each rank would then import for itself.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), before.get("PYTHONPATH")]))
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # or importing numpy starts threads; ranks set torch's for themselves
    # Ctrl-C is the parent's business: in a process that starts Python it would be a traceback.
    resource_tracker.ensure_running()  # which unblocks it when it is started
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for name in {"PYTHONPATH", "OMP_NUM_THREADS"} - before.keys():
            del os.environ[name]
        os.environ.update(before)
    return context
