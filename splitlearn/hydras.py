"""Hydra as all of its versions have it, from 1.3 on: what 1.4 wants to be told and 1.3 does not know, and what is wrong
with a file of options, which none of them tells in a sentence."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra.utils
import hydra.version
from hydra.errors import HydraException, InstantiationException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

IS_1_3 = hydra.version.__version__.startswith("1.3.")  # which goes with omegaconf 2.2 and 2.3

# A run's configuration is its user's own program: `_target_` names any class that he can import, his own among them, so
# that a list of those that are allowed would be a list of everything. Nothing that a peer sends is instantiated.
if IS_1_3:
    VERSION_BASE = {"version_base": "1.3"}  # of hydra.initialize_config_dir: 1.3 warns without it, 1.4 with it
    MAIN, MADE = VERSION_BASE, {}  # of hydra.main, and of hydra.utils.instantiate
else:
    VERSION_BASE = {}
    MAIN = {"execution_whitelist": hydra.utils.UNSAFE_DISABLE_EXECUTION_CHECKS}
    MADE = {"_execution_whitelist_": hydra.utils.UNSAFE_DISABLE_EXECUTION_CHECKS}


def instantiate(node: Any, *arguments: Any, **options: Any) -> Any:
    """The object that `node._target_` names, made with these arguments and the node's options.

    Raises:
        InstantiationException: there is no such class, or what it raised, which is the cause; 1.4 lets that pass.
    """
    try:
        return hydra.utils.instantiate(node, *arguments, **MADE, **options)
    except (HydraException, OmegaConfBaseException):
        raise
    except Exception as error:
        raise InstantiationException(f"Error in call to target: {error!r}") from error


def register_resolver(name: str, resolver: Callable[..., Any]) -> None:
    """`${name:…}` in a configuration is what `resolver` returns, instead of what an earlier one did."""
    register = OmegaConf.register_new_resolver if IS_1_3 else OmegaConf.register_resolver  # another, in omegaconf 2.3
    register(name, resolver, replace=True)


def in_a_file(error: BaseException) -> str | None:
    """What is wrong with the file of options that Hydra met an error in; None where it read none, or tells itself."""
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return None
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__) if "hydra" in frame.f_code.co_filename]
    names = {frame.f_code.co_name: frame.f_locals for frame in frames}  # the innermost's
    if isinstance(error, RecursionError) and (named := names.get("_create_defaults_tree_impl", {}).get("path")):
        return f"{named}.yaml is among its own defaults, or among those of a file that it names there"
    if path := names.get("load_config", {}).get("full_path"):
        return unreadable(Path(path), error)
    said = str(error)
    return said if isinstance(error, ValueError) and said.startswith("Invalid defaults list in") else None


def unreadable(path: Path, error: BaseException) -> str:
    """Why a YAML file cannot be read, in a sentence."""
    if isinstance(error, UnicodeDecodeError):
        return f"{path} cannot be read: it is not in UTF-8"
    if isinstance(error, MarkedYAMLError) and (mark := error.problem_mark or error.context_mark):
        return f"{path}:{mark.line + 1} is no YAML: {error.problem or error.context}"
    why = error.strerror if isinstance(error, OSError) else str(error).partition("\n")[0]
    return f"{path} is no YAML: {why}" if isinstance(error, YAMLError) else f"{path} cannot be read: {why}"
