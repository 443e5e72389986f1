"""What the measurements share with the scripts above them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from script import ROOT, start
from tables import markdown

from splitlearn.measure.summary import saving_both_ways

__all__ = ["ROOT", "markdown", "saving_both_ways", "start"]
