"""Starts a run, or a sweep of runs: under torchrun as one of its ranks, else as the process that starts all ranks.

torchrun --standalone --nproc-per-node 3 launch.py compressor.ratio=0.95
python launch.py num_clients=4 cut=deep
python launch.py -m compressor=none,ms cut=shallow,deep
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else each peer that leaves is a warning of RPC's

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from omegaconf import DictConfig

from splitlearn import config, local, models, worker
from splitlearn.errors import UserError

TELLING_S = 5  # how long a silent rank waits for the server to tell the user what happened


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float | None:
    """One run; returns its last top-1 test accuracy, 0 to 1, for sweepers to maximise."""
    place = None
    folder = Path(HydraConfig.get().runtime.output_dir)
    is_checked = False
    try:
        place = worker.place_from(cfg)
        if cfg.cut == "?":
            return models.print_cuts(cfg) if place is None or place.rank == 0 else None
        config.check(cfg)
        is_checked = True
        return local.run(cfg, folder) if place is None else worker.run_rank(cfg, place, folder)
    except UserError as error:
        if is_client() and one_console() and (error.is_told or not is_checked):
            # The server says it. Ending before it has would make torchrun kill it.
            time.sleep(TELLING_S)
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        if "TORCHELASTIC_ERROR_FILE" in os.environ:  # torchrun repeats it in its report of the failure
            Path(os.environ["TORCHELASTIC_ERROR_FILE"]).write_text(json.dumps({"message": str(error)}))
        raise CompactHydraException(str(error)) from None


def is_client() -> bool:
    """Whether this process is a client's, by torchrun's rank or by `role`."""
    return "role=client" in sys.argv or os.environ.get("RANK", "0") != "0"


def one_console() -> bool:
    return os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE", "1")


def write_nothing() -> None:
    """Lets Hydra make its folder of this rank somewhere temporary: a run has one folder, the server's."""
    folder = tempfile.TemporaryDirectory(prefix="splitlearn-")
    sys.argv += [f"hydra.run.dir={folder.name}", f"hydra.sweep.dir={folder.name}", "hydra.output_subdir=null"]
    sys.argv += ["hydra/job_logging=none", "hydra/hydra_logging=none"]
    write_nothing.folder = folder  # removed when the process ends


if __name__ == "__main__":
    if is_client():
        write_nothing()
    try:
        main()
    except KeyboardInterrupt:
        if not is_client():
            print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
