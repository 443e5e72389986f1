"""One run, or a sweep of runs, as the command line says: what launch.py, `splitlearn` and `python -m splitlearn` do.

How it works: Hydra composes the configuration, and calls `main` for each job: this rank's part of a run, or all its
ranks. What a user can mend ends as one sentence on stderr, whoever found it: Hydra, a check before the start, a rank.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from splitlearn import local, sweeps, worker
from splitlearn.compose import in_words
from splitlearn.console import drop_output, forgive
from splitlearn.errors import Stopped, UserError
from splitlearn.exchange.network import print_cuts
from splitlearn.kinds import CONF
from splitlearn.stopping import tidy_up

TELLING_S = 5  # how long another rank leaves the server to tell the user what happened


def start() -> int:
    """Does what the command line says; returns the exit code."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # its errors come here, to be told in a sentence
    forgive(sys.stdout, sys.stderr)
    sys.argv = go_on(sys.argv)
    if is_client():
        client_folder = write_nothing()
        tidy_up.append(client_folder.cleanup)
    sweeps.current = None
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code
    except (HydraException, OmegaConfBaseException) as error:
        code = tell(UserError(in_words(error, sys.argv[1:])), all_ranks_see_it=True)
    except (RuntimeError, ValueError) as error:
        if not (sweeps.current and sweeps.current.is_search and sweeps.current.has_failures()):
            raise
        print(f"the search ends without a best job: {error}", file=sys.stderr)  # Optuna's, where its last job has none
        code = 1
    try:
        if sweeps.current and not is_client() and not sweeps.current.show():
            code = code or 1
        sys.stdout.flush()
    except BrokenPipeError:
        drop_output()
    return code


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def main(cfg: DictConfig) -> float | None:
    """One run; returns its result, the first of the task's metrics, for sweepers to optimise; None if it has none."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    all_ranks_see_it, place, is_job = True, None, HydraConfig.get().mode == RunMode.MULTIRUN
    try:
        place = worker.place_from(cfg)
        if is_job and place is None:
            sweeps.forget_failure(folder)
        if cfg.cut == "?":
            return print_cuts(cfg) if place is None or place.rank == 0 else None
        worker.check(cfg)
        all_ranks_see_it = False
        result = local.run(cfg, folder) if place is None else worker.run_rank(cfg, place, folder)
        return result if math.isfinite(result) else None
    except Stopped as stopped:
        if not (is_client() and is_on_servers_console()):
            print(f"\n{stopped}", file=sys.stderr)
        sys.exit(128 + stopped.signal)
    except (UserError, OmegaConfBaseException) as error:
        error = error if isinstance(error, UserError) else UserError(in_words(error))
        if is_job and place is None:
            sweeps.note_failure(folder, error)
            print(f"this job failed, and the sweep goes on: {error}", file=sys.stderr)
            return None
        sys.exit(tell(error, all_ranks_see_it))


def tell(error: UserError, all_ranks_see_it: bool) -> int:
    """Tells the user of an error, unless the server does; returns the exit code."""
    if is_client() and is_on_servers_console() and (error.is_told or all_ranks_see_it):
        time.sleep(TELLING_S)  # torchrun kills the server too as soon as this rank ends
    else:
        print(error, file=sys.stderr)
    leave_to_torchrun(error)
    return 1


def is_client() -> bool:
    """Whether this process is a client's, by torchrun's rank or by `role`."""
    return "role=client" in sys.argv or os.environ.get("RANK", "0") != "0"


def is_on_servers_console() -> bool:
    """Whether torchrun started all ranks on this machine."""
    return "WORLD_SIZE" in os.environ and os.environ["LOCAL_WORLD_SIZE"] == os.environ["WORLD_SIZE"]


def leave_to_torchrun(error: UserError) -> None:
    """Gives torchrun the sentence that its long report of a failure ends with."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        about = {"message": str(error), "errorCode": 1, "extraInfo": {"timestamp": int(time.time())}}
        Path(path).write_text(json.dumps({"message": about}))  # which it prints without warnings of its own


def started_at(form: str) -> str:
    """When this run was started; under torchrun when torchrun was, so that ranks that it restarts find their folder."""
    moment = time.time()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        clock_ticks = int(Path(f"/proc/{os.getppid()}/stat").read_text().rsplit(")", 1)[1].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        moment -= uptime - clock_ticks / os.sysconf("SC_CLK_TCK")
    return datetime.fromtimestamp(round(moment)).strftime(form)


def go_on(argv: list[str]) -> list[str]:
    """The command line, with resume=<folder> replaced by what that run was started with; the rest comes after.

    A client on another machine, which does not have the folder, has to be given the run's options again.
    """
    folders = [word.split("=", 1)[1] for word in argv if word.startswith("resume=")]
    if not folders or folders[-1] in ("auto", "never"):
        return argv
    folder = Path(folders[-1])
    overrides = folder / ".hydra" / "overrides.yaml"
    if not is_client() and not overrides.exists():
        sys.exit(f"resume={folder}: no run was started in that folder; there is no {overrides}")
    before = OmegaConf.load(overrides) if overrides.exists() else []
    before = [word for word in before if not word.startswith(("resume=", "role=", "client.index="))]
    return [argv[0], *before, *argv[1:], f"hydra.run.dir={folder}"]


def write_nothing() -> tempfile.TemporaryDirectory:
    """Sends the folder that Hydra makes for this rank away: a run has one folder, the server's."""
    folder = tempfile.TemporaryDirectory(prefix="splitlearn-")
    sys.argv += [f"hydra.run.dir={folder.name}", f"hydra.sweep.dir={folder.name}", "hydra.output_subdir=null"]
    sys.argv += ["hydra/hydra_logging=none"]
    return folder


OmegaConf.register_new_resolver("started_at", started_at, replace=True)
