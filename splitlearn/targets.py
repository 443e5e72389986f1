"""What `_target_` names in a configuration, which is its user's own as often as not, and why it cannot be had."""

from __future__ import annotations

import inspect
import sysconfig
import traceback
from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from types import ModuleType
from typing import Any

from splitlearn.errors import UserError

ELSEWHERE = (*map(sysconfig.get_path, ("stdlib", "platlib", "purelib")), __file__, "<")
WHERE = "in the current folder, next to launch.py, or in one that PYTHONPATH names"


def imported(target: Any, key: str) -> Any:
    """The class or function that a dotted path names, its modules imported.

    Raises:
        UserError: there is none, or a module ends with an error, which is told with file and line.
    """
    names, found, path = str(target).split("."), None, ""
    if len(names) < 2 or not all(name.isidentifier() for name in names):
        raise UserError(f"{key}={target} cannot be imported: it has to be <module>.<class or function>")
    for name in names:
        path, above = f"{path}.{name}".lstrip("."), path
        if hasattr(found, name):
            found = getattr(found, name)
            continue
        if found is not None and not hasattr(found, "__path__"):  # of a package, whose modules may be not imported yet
            raise UserError(f"{key}={target} cannot be imported: {_without(found, above, name)}")
        try:
            found = import_module(path)
        except ModuleNotFoundError as error:
            if error.name != path:
                raise UserError(f"{key}={target} cannot be imported: {_told(error)}") from None
            why = _without(found, above, name) if above else f"there is no module {name} {WHERE}"
            raise UserError(f"{key}={target} cannot be imported: {why}") from None
        except (Exception, SystemExit) as error:  # of whatever kind, a user's module may end with it
            raise UserError(f"{key}={target} cannot be imported: {_told(error)}") from None
    return found


def parameters_of(target: Any, key: str) -> Mapping[str, inspect.Parameter]:
    """What the class or function that a dotted path names is called with, by name; none where it does not say.

    Raises:
        UserError: there is none.
    """
    found = imported(target, key)
    if not callable(found):
        raise UserError(f"{key}={target} is a {type(found).__name__}, where a class or function is needed")
    try:
        return inspect.signature(found).parameters
    except ValueError:  # as of some of Python's own
        return {}


def _without(found: Any, path: str, name: str) -> str:
    its = (getattr(found, "__file__", None) or path) if isinstance(found, ModuleType) else path
    known = {one.lower(): one for one in dir(found) if not one.startswith("_")}
    near = get_close_matches(name.lower(), known, n=1)
    return f"{its} has no {name}" + "".join(f": did you mean {known[one]}?" for one in near)


def _told(error: BaseException) -> str:
    """An error with the line of the user's that it comes from."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(ELSEWHERE)]
    said = str(error).strip().partition("\n")[0]
    what = f"{type(error).__name__}: {said}".removesuffix(": ")
    return f"{own[-1].filename}:{own[-1].lineno}: {what}" if own else what
