"""The configuration as launch.py gets it, for programs that start runs themselves: scripts, tests, notebooks."""

from pathlib import Path

import hydra
from omegaconf import DictConfig

import splitlearn.config
import splitlearn.tasks  # noqa: F401  they register compressors and networks

CONF = Path(__file__).parents[1] / "conf"


def compose(*overrides: str) -> DictConfig:
    """The configuration that launch.py would make of these overrides, such as "cut=deep" or "compressor.bits=3"."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("config", list(overrides))
