"""Imported by the process that ranks are forked from: what each of them would else do anew, some seconds of it."""

from splitlearn import orphan  # noqa: F401  first: it may end amid the others

# isort: split
import gc
from contextlib import suppress

import sklearn.datasets  # of the digits
import sklearn.model_selection  # noqa: F401  of their split

import splitlearn.worker  # noqa: F401
from splitlearn.transport.operators import look_up_operators

with suppress(AttributeError):  # where each rank says what that means
    look_up_operators()

# What is there now stays: no rank's garbage collector goes through it, which would copy its pages too.
gc.freeze()
