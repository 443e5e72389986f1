"""The process that the ranks on this machine are forked from: it has imported torch for all, and has started no thread.

Where a command starts a run it is a copy of the command's own process (`start_from_here`), so that nothing is imported
twice; else, as for who calls `local.run`, a new process (`start`).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from multiprocessing import forkserver, resource_tracker, util
from pathlib import Path

from splitlearn.stopping import SIGNALS

_ELSEWHERE = ("role=", "cut=?", "hydra/launcher=")  # words of a command line that forks no ranks from here


def forks(words: Sequence[str]) -> bool:
    """Whether a command line, without its first word, starts all ranks of a run on this machine, as far as it shows."""
    options = {word for word in words if word.startswith("-")}
    return options <= {"-m", "--multirun"} and not any(word.lstrip("+").startswith(_ELSEWHERE) for word in words)


def start() -> multiprocessing.context.ForkServerContext:
    """Starts that process, which then imports on its own what ranks need; once is enough."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["splitlearn.preloaded"])
    # Python 3.11 gives it no sys.path, and says nothing if it cannot import: each rank would then import for itself.
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    # To end is the parent's business, which would not know any more which ranks live; and in a process that starts
    # Python, Ctrl-C would be a traceback.
    resource_tracker.ensure_running()  # which unblocks SIGINT and SIGTERM when it is started
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        with _set(PYTHONPATH=path), no_threads():
            forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return context


def start_from_here() -> None:
    """Forks that process from this one, which has imported what ranks need within `no_threads`, and started none.

    Does nothing where there are threads, as of a debugger: a copy would not have them, but the locks that they hold.
    """
    if _num_threads() > 1:
        return
    resource_tracker.ensure_running()  # by itself, as it needs none of this
    spawn, util.spawnv_passfds = util.spawnv_passfds, _fork  # the one step that is another than in `start`
    try:
        start()
    finally:
        util.spawnv_passfds = spawn


def no_threads():
    """A context in which importing numpy starts no threads; ranks set torch's for themselves."""
    return _set(OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", "1"))


def _num_threads() -> int:
    """Of this process; those of C++ libraries are among them where the system tells."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return threading.active_count()


def _fork(_, command: Sequence[str], kept: Sequence[int]) -> int:
    """As multiprocessing.util.spawnv_passfds(path, ["python", …, "-c", program], fds), in a copy of this process."""
    if pid := os.fork():
        return pid
    code = 0
    try:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        for before, after in pairwise([2, *sorted(kept), util.MAXFD]):
            os.closerange(before + 1, after)
        forkserver._forkserver.__init__()  # whose lock was held when this process was forked
        exec(command[-1], {})
    except SystemExit:  # which is how that ends
        pass
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    finally:
        os._exit(code)


@contextmanager
def _set(**variables: str) -> Iterator[None]:
    """Sets variables of the environment for a while."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
