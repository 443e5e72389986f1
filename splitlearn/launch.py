"""One run, or a sweep of runs, as the command line says: what launch.py, `splitlearn` and `python -m splitlearn` do.

How it works: Hydra composes the configuration, and calls `main` for each job: this rank's part of a run, or all its
ranks. What a user can mend ends as one sentence on stderr, whoever found it: Hydra, a check before the start, a rank.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import sys
import time
from functools import partial
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from splitlearn import checks, hydras, local, sweeps, worker
from splitlearn.checkpoints import write_texts
from splitlearn.commandline import is_client, read, write_nothing
from splitlearn.compose import in_words, is_hydras
from splitlearn.console import complain, drop_output, forgive, is_unread
from splitlearn.errors import Interrupted, Stopped, UserError, writing_to
from splitlearn.exchange import listing, network
from splitlearn.folder import fitting, new_folder, started_at
from splitlearn.kinds import CONF
from splitlearn.stopping import tidy_up

OF_ONE_RANK = ("rpc.host=", "rpc.port=", "client.index=")  # options that nothing heeds where this starts all ranks
unheeded: list[str] = []  # such words of the command line; not those that a run which goes on was started with
TELLING_S = 5  # how long another rank leaves the server to tell the user what happened


def start() -> int:
    """Does what the command line says; returns the exit code."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # its errors come here, to be told in a sentence
    forgive(sys.stdout, sys.stderr)
    logging.raiseExceptions = False  # where Hydra's lines cannot be shown, it would print tracebacks of that
    sys.path.append(os.getcwd())  # a user's own data set, network or exchange is found there, by all ranks
    global unheeded
    unheeded = [word for word in sys.argv if word.lstrip("+").startswith(OF_ONE_RANK)]
    try:
        sys.argv = read(sys.argv)
    except UserError as error:
        return tell(error, all_ranks_see_it=True)
    if is_client():
        client_folder = write_nothing()
        tidy_up.append(client_folder.cleanup)
    sweeps.current = None
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code
    except BrokenPipeError:
        if not is_unread():  # as --help | head is; another one is a socket's
            raise
        drop_output()
        code = 1
    except Exception as error:
        if (found := mistake(error)) is None:
            raise
        code = tell(found, all_ranks_see_it=True)
    try:
        if sweeps.current and not is_client() and not sweeps.current.show():
            code = code or 1
        if sys.stdout is not None:  # as where the shell has closed it
            sys.stdout.flush()
    except OSError:  # it cannot be shown
        drop_output()
    return code


@hydra.main(**hydras.MAIN, config_path=str(CONF), config_name="config")
def main(cfg: DictConfig) -> float | None:
    """One run; returns its result, the first of the task's metrics, for sweepers to optimise; None if it has none."""
    folder, origin = Path(HydraConfig.get().runtime.output_dir), origin_of(cfg)
    all_ranks_see_it, place, is_job = True, None, HydraConfig.get().mode == RunMode.MULTIRUN
    try:
        place = worker.place_from(cfg)
        if cfg.cut == "?":
            is_silent = place is not None and place.is_fleet and place.rank > 0
            return None if is_silent else listing.print_cuts(cfg)
        if place is None and unheeded:
            raise UserError(
                f"{unheeded[-1]} is for a rank that is started alone: add role=server or role=client, or leave it out"
            )
        is_new = not is_client() and not any((folder / name).exists() for name in (".hydra", "config.yaml"))
        with writing_to(folder):
            if is_new and is_job:  # of which the sweep's table says what it was given, also where it is refused
                write_texts(folder, origin)
            if is_job and place is None:
                sweeps.begin_job(folder)
        checks.check(cfg)
        network.check(cfg)
        if is_new and not is_job:
            with writing_to(folder):
                write_texts(folder, origin)
        all_ranks_see_it = False
        run = partial(local.run, cfg) if place is None else partial(worker.run_rank, cfg, place)
        result = run(folder, origin=origin)
        return result if math.isfinite(result) else None
    except (Stopped, Interrupted) as end:
        if not (is_client() and is_on_servers_console()):
            complain(f"\n{end}")
        sys.exit(128 + end.signal)
    except (UserError, OmegaConfBaseException) as error:
        error = error if isinstance(error, UserError) else UserError(in_words(error))
        if is_job and place is None:
            sweeps.note_failure(folder, error)
            complain(f"this job failed, and the sweep goes on: {error}")
            return None
        sys.exit(tell(error, all_ranks_see_it))


def mistake(error: Exception) -> UserError | None:
    """What to tell the user of what ended Hydra; None where it is no mistake of his."""
    sweep = sweeps.current
    if is_hydras(error):
        return UserError(in_words(error, sys.argv[1:]))
    if sweep and isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):  # for a file of Hydra's
        return sweep.without_room(error)
    if sweep and sweep.is_search and isinstance(error, (RuntimeError, ValueError)) and sweep.has_failures():
        return UserError(f"the search ends without a best job: {error}")  # Optuna's, where its last job has none
    return None


def origin_of(cfg: DictConfig) -> dict[str, str]:
    """What Hydra would write into .hydra/ by itself, before the run has begun and even where it is then refused."""
    hydra = HydraConfig.instance().cfg
    about = {"config.yaml": cfg, "hydra.yaml": hydra, "overrides.yaml": hydra.hydra.overrides.task}
    return {f".hydra/{name}": OmegaConf.to_yaml(node) for name, node in about.items()}


def tell(error: UserError, all_ranks_see_it: bool) -> int:
    """Tells the user of an error, unless the server does; returns the exit code."""
    if is_client() and is_on_servers_console() and (error.is_told or all_ranks_see_it):
        time.sleep(TELLING_S)  # torchrun kills the server too as soon as this rank ends
    else:
        complain(error)
    leave_to_torchrun(error)
    return 1


def is_on_servers_console() -> bool:
    """Whether torchrun started all ranks on this machine."""
    return "WORLD_SIZE" in os.environ and os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]


def leave_to_torchrun(error: UserError) -> None:
    """Gives torchrun the sentence that its long report of a failure ends with."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        about = {"message": str(error), "errorCode": 1, "extraInfo": {"timestamp": int(time.time())}}
        Path(path).write_text(json.dumps({"message": about}))  # which it prints without warnings of its own


hydras.register_resolver("started_at", started_at)
hydras.register_resolver("new_folder", new_folder)
hydras.register_resolver("fitting", fitting)
