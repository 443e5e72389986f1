"""What the scripts share: composing a configuration, and Markdown tables."""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # so that the scripts run from a clone that is not installed


def compose(*overrides: str) -> DictConfig:
    """The configuration that launch.py would make of these overrides."""
    import splitlearn.config
    import splitlearn.models  # noqa: F401  they register the compressors and torchvision's networks

    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return hydra.compose("config", list(overrides))


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table whose columns are aligned in plain text too: the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]

    def line(cells: list[str]) -> str:
        first, *others = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "| " + " | ".join([first, *others]) + " |"

    rule = "|" + "|".join("-" * (width + 1) + ("-" if i == 0 else ":") for i, width in enumerate(widths)) + "|"
    return "\n".join([line(header), rule, *map(line, rows)])
