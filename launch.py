"""Starts a run, or a sweep of runs: under torchrun as one of its ranks, else as the process that starts all ranks.

torchrun --standalone --nproc-per-node 3 launch.py compressor.ratio=0.95
python launch.py num_clients=4 cut=deep
python launch.py -m compressor=none,ms cut=shallow,deep
python launch.py resume=outputs/2026-01-31/12-00-00
"""

import json
import math
import os
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else each peer that leaves is a warning of RPC's

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from splitlearn import config, local, worker
from splitlearn.errors import Stopped, UserError
from splitlearn.exchange import network

sys.path.append(os.getcwd())  # the user's own networks; a process that this one starts takes it over
broken: dict[Path, str] = {}  # jobs of a sweep in this process, and why
TELLING_S = 5  # how long another rank leaves the server to tell the user what happened


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float | None:
    """One run; returns its result, the first of the task's metrics, for sweepers to maximise."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    all_ranks_see_it, place = True, None
    try:
        place = worker.place_from(cfg)
        if cfg.cut == "?":
            return network.print_cuts(cfg) if place is None or place.rank == 0 else None
        config.check(cfg)
        network.check(cfg)
        all_ranks_see_it = False
        return local.run(cfg, folder) if place is None else worker.run_rank(cfg, place, folder)
    except Stopped as stopped:
        if not (is_client() and is_on_servers_console()):
            print(f"\n{stopped}", file=sys.stderr)
        sys.exit(128 + stopped.signal)
    except UserError as error:
        if is_client() and is_on_servers_console() and (error.is_told or all_ranks_see_it):
            time.sleep(TELLING_S)  # torchrun kills the server too as soon as this rank ends
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        if HydraConfig.get().mode == RunMode.MULTIRUN and place is None:
            broken[folder] = str(error)
            print(f"this job failed, and the sweep goes on: {error}", file=sys.stderr)
            return math.nan
        leave_to_torchrun(error)
        raise CompactHydraException(str(error)) from None


def is_client() -> bool:
    """Whether this process is a client's, by torchrun's rank or by `role`."""
    return "role=client" in sys.argv or os.environ.get("RANK", "0") != "0"


def is_on_servers_console() -> bool:
    """Whether torchrun started all ranks on this machine."""
    return "WORLD_SIZE" in os.environ and os.environ["LOCAL_WORLD_SIZE"] == os.environ["WORLD_SIZE"]


def leave_to_torchrun(error: UserError) -> None:
    """Gives torchrun the sentence that its long report of a failure ends with."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        Path(path).write_text(json.dumps({"message": str(error), "timestamp": int(time.time())}))


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

if __name__ == "__main__":
    sys.argv = go_on(sys.argv)
    if is_client():
        client_folder = write_nothing()
    try:
        main()
    except KeyboardInterrupt:
        if not is_client():
            print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    if broken:
        jobs = "".join(f"\n  {folder}: {why}" for folder, why in broken.items())
        sys.exit(f"{len(broken)} job{'s' * (len(broken) > 1)} of the sweep failed:{jobs}")
