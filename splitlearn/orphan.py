"""Imported first by the process that ranks are forked from: it ends with its parent at once, amid its other imports.

Without this it would notice only after them, seconds after a Ctrl-C. Linux alone can do it; elsewhere it notices late.
"""

import ctypes
import signal
import sys

PR_SET_PDEATHSIG = 1  # <sys/prctl.h>

if sys.platform == "linux":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
