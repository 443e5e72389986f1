"""Loops that numba compiles at their first call, and keeps beside Python's own compiled files."""

from collections.abc import Callable

from numba import njit


def compiled(function: Callable | None = None, **options) -> Callable:
    """Decorator: `numba.njit` that lets other threads run, and is kept for the next process where that can be."""
    if function is None:
        return lambda function: compiled(function, **options)
    try:
        return njit(cache=True, nogil=True, **options)(function)
    except RuntimeError:  # neither this folder nor the user's can be written to
        return njit(nogil=True, **options)(function)
