"""launch.py in a process that is forked from one that has imported torch, which saves several seconds a start."""

import atexit
import os
import runpy
import signal
import subprocess
import sys
import weakref
from multiprocessing.connection import Connection
from pathlib import Path

from splitlearn import forking
from splitlearn.stopping import SIGNALS

ROOT = Path(__file__).parents[1]
LAUNCH = [sys.executable, str(ROOT / "launch.py")]


class Forked:
    """What tests use of subprocess.Popen(LAUNCH + arguments, cwd, env=environment, start_new_session=True), with its
    output in a file."""

    def __init__(self, arguments: list[str], cwd: Path, out: Path, environment: dict[str, str]):
        context = forking.start()
        begun, end = context.Pipe(duplex=False)
        self._process = context.Process(target=_launch, args=(arguments, cwd, out, environment, end))
        self._process.start()
        self.pid = self._process.pid
        end.close()
        begun.recv()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    poll = returncode.fget

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("launch.py", timeout)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def _launch(arguments: list[str], cwd: Path, out: Path, environment: dict[str, str], begun: Connection) -> None:
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    file = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(file, number)
    os.close(file)
    others = [path for path in sys.path if path and not Path(path).is_relative_to(ROOT / "tests")]
    sys.path[:] = [str(ROOT), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep)), *others]
    sys.argv[:] = [*LAUNCH[1:], *arguments]
    for finalizer in tuple(weakref.finalize._registry):
        finalizer.atexit = False  # those of torch are for the process that this is a copy of to call
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    begun.send(None)
    begun.close()
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out
