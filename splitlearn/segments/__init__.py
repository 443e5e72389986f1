"""Cutting any model into parts, and what trains them."""

from splitlearn.segments.bottleneck import with_bottleneck
from splitlearn.segments.cutpoint import CutPoint
from splitlearn.segments.cutting import split, valid_cuts

__all__ = ["CutPoint", "split", "valid_cuts", "with_bottleneck"]
