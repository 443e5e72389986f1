import faulthandler
import gc
import logging
import os
import re
import runpy
import signal
import sys
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # each worker has a core; threads of several on one slow all down
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import pytest_timeout
import torch
from runs import a_free_port
from simulation import compose

import splitlearn.tasks  # noqa: F401  registers the config groups
from splitlearn.stopping import SIGNALS

STDERR = pytest.StashKey[int]()


def pytest_configure(config):
    config.stash[STDERR] = os.dup(2)  # before it is captured


def pytest_collection_finish():
    gc.freeze()  # what has been imported and collected stays: no collection of garbage goes through it


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_set_timer(item, settings):
    """A test that hangs with Python's own lock held is not told of its timeout: its process ends, a bit later."""
    if not pytest_timeout.is_debugging():  # where timeouts are suspended too
        faulthandler.dump_traceback_later(settings.timeout + 30, exit=True, file=item.config.stash[STDERR])


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_cancel_timer(item):
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def free_port() -> int:
    return a_free_port()


@pytest.fixture
def run_here(tmp_path, monkeypatch, capfd):
    """run_here(path, *arguments): exit status and output of a Python program that runs in this process, below tmp_path.

    Several seconds faster than `runs.run`, as torch is imported already.
    """

    def run(path: Path, *arguments: str) -> tuple[int, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [str(path), *arguments])
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
        handlers = {number: signal.getsignal(number) for number in SIGNALS}
        monkeypatch.syspath_prepend(path.parent)
        # Hydra closes all handlers of logging that there are, and absl's then closes a stream that is pytest's.
        monkeypatch.setattr(logging, "_handlerList", [])
        status = 0
        try:
            runpy.run_path(str(path), run_name="__main__")
        except SystemExit as end:
            status = end.code or 0
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return status, "".join(capfd.readouterr())

    return run


@pytest.fixture
def one_thread():
    """The number of threads changes the order of sums, so that it must be the ranks' own."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def config():
    """config("key=value", …): the configuration that launch.py would get."""
    return compose


@pytest.fixture(scope="session")
def noise():
    """noise(shape, seed, dtype): normal values, of which `relu=True` keeps the positive ones."""

    def make(*shape, seed=0, dtype=torch.float32, relu=False):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
        return x.relu() if relu else x

    return make


@pytest.fixture
def reviews(tmp_path):
    """Options of a run on a table of forty texts of 1 to 24 bytes, in three classes."""
    words = re.findall(r"\S+", "a film that is not so bad as it was said to be, or is it? well")
    lines = ["text,label"]
    for number in range(40):
        text = " ".join(words[number % 3 : number % 3 + 1 + number * 7 % 9])
        lines.append(f'"{text}",{("good", "bad", "so so")[number % 3]}')
    path = tmp_path / "reviews.csv"
    path.write_text("\n".join(lines))
    return [f"data.root={path}", f"data.test_root={path}", "data.max_length=24"]
