"""Starts all ranks of a run on this machine, as torchrun would, and brings back the result or the first error."""

from __future__ import annotations

import multiprocessing
import os
import secrets
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from splitlearn import forking, saved
from splitlearn.console import forgive
from splitlearn.errors import Interrupted, PeerError, Stopped, UserError
from splitlearn.folder import held
from splitlearn.stopping import SIGNALS, StopRequest
from splitlearn.tasks import task_from
from splitlearn.transport import Place, allow_files, host_store, rank_name
from splitlearn.worker import DEFAULT_NUM_CLIENTS, run_rank

GRACE_S = 10.0  # for the other ranks to end by themselves after one has failed


def run(cfg: DictConfig, folder: Path, origin: dict[str, str] | None = None) -> float:
    """Runs a server and cfg.num_clients clients in processes of their own.

    Returns the run's result, the first of the task's metrics. `origin` as Recorder's.

    No process outlives the call, however it ends; nor this process, should it be killed.

    Raises:
        UserError: a rank failed; says why.
        Stopped: a signal asked for it.
        Interrupted: Ctrl-C, after that.
    """
    num_clients = cfg.num_clients or DEFAULT_NUM_CLIENTS
    num_ranks = num_clients + 1
    # A thread each would do as torchrun does; ranks that share a core slow one another down.
    num_threads = None if "OMP_NUM_THREADS" in os.environ else max(1, (os.cpu_count() or 1) // num_ranks)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # as launch.py
    cfg = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True) | {"num_clients": num_clients})
    if (result := saved.finished_result(folder, cfg)) is not None:
        first = task_from(cfg).metrics[0]
        print(f"finished before, with a test {first.title} of {first.form(result)}: {folder}")
        return result
    allow_files(num_ranks, one_machine=True)
    with held(folder):
        pass  # the server will hold it; where it could not, nothing need be started
    store, token = host_store("127.0.0.1", 0), secrets.token_bytes(32)
    if multiprocessing.get_start_method(allow_none=True) not in (None, *multiprocessing.get_all_start_methods()):
        multiprocessing.set_start_method("forkserver", force=True)  # joblib's own, which no new process could take over
    context = forking.start()
    processes, pipes = {}, {}
    try:
        for rank in range(num_ranks):
            place = Place(rank, num_clients, "127.0.0.1", store.port, one_machine=True)
            pipes[rank], end = context.Pipe(duplex=False)
            process = context.Process(
                target=_run, args=(cfg, place, folder, token, origin, num_threads, end), name=place.name
            )
            process.start()
            processes[rank] = process
            end.close()
        # The first signal has the server end the run, with a checkpoint.
        with StopRequest(then=lambda: _end(processes[0], processes[0].terminate)) as stop:
            return _result(processes, pipes, stop)
    except Interrupted:
        for process in processes.values():
            _end(process, process.kill)
        raise
    finally:
        for process in processes.values():
            _end(process, process.terminate)
        deadline = time.monotonic() + GRACE_S
        for process in processes.values():
            process.join(max(0.0, deadline - time.monotonic()))
            _end(process, process.kill)


def _end(process, by: Callable[[], None]) -> None:
    """Ends a rank that has not ended: else another process, of somebody else's, may have its number by now."""
    if process.is_alive():
        by()


def _result(processes: dict, pipes: dict[int, Connection], stop: StopRequest) -> float:
    """Waits for all ranks; after a first failure for GRACE_S, since another may know more of the cause."""
    running = dict(processes)
    outcomes = {}
    while running:
        failed = any(not isinstance(outcome, float) for outcome in outcomes.values())
        ended = wait([process.sentinel for process in running.values()], GRACE_S if failed else None)
        if not ended:
            break
        for rank in [rank for rank, process in running.items() if process.sentinel in ended]:
            outcomes[rank] = _outcome(running.pop(rank), pipes[rank])
    errors = [outcome for outcome in outcomes.values() if isinstance(outcome, UserError)]
    if errors and stop.asked_by is not None:
        if isinstance(outcomes.get(0), Stopped):
            raise Stopped(str(outcomes[0]), stop.asked_by)
        raise Stopped("interrupted", stop.asked_by)  # before there was anything to keep
    # The cause before its consequences: what the server does not know of, then what a rank says of itself.
    for error in sorted(errors, key=lambda error: (error.is_told, isinstance(error, PeerError))):
        raise error
    return outcomes[0]


def _outcome(process, pipe: Connection) -> float | UserError:
    try:
        return pipe.recv()
    except EOFError:
        code = process.exitcode
        how = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
        return UserError(f"{process.name} ended with {how}")


def _run(
    cfg: DictConfig,
    place: Place,
    folder: Path,
    token: bytes,
    origin: dict[str, str] | None,
    num_threads: int | None,
    pipe: Connection,
) -> None:
    """The main function of one rank's process."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the terminal's reach the parent, which ends this process
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # which are blocked where it was forked
    forgive(sys.stdout, sys.stderr)
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        outcome = run_rank(cfg, place, folder, token, origin)
    except UserError as error:
        outcome = error
    except Interrupted as end:
        sys.exit(128 + end.signal)
    except Exception as error:
        traceback.print_exc()
        outcome = UserError(f"{rank_name(place.rank)} crashed with {type(error).__name__} (traceback above)")
    pipe.send(outcome)
    sys.exit(0 if isinstance(outcome, float) else 1)


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
