"""What a run was started with, as its .hydra/ says: for the run that goes on, and for what is done with it later."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from errno import ENOENT
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from yaml import YAMLError

from splitlearn.errors import UserError
from splitlearn.kinds import CONF
from splitlearn.words import quoted

WORDS = Path(".hydra") / "overrides.yaml"  # in a run's folder
PROGRAMS_OWN = ("hydra", "main", "schema")  # what Hydra calls those that bring it files of options
ELSEWHERE = ("hydra.searchpath=", "--config-dir", "-cd")  # how others' are named now
NEVER_AGAIN = ("resume", "role", "client.index")  # of one start, and not of the run


@dataclass
class Start:
    """What a run was started with.

    Attributes:
        folder: of the run.
        words: options, in their order.
        choices: of each group, such as compressor@downlink.
        sources: folders with files of options beside the program's own, as of --config-dir.
        job: which one of a sweep; None for a run that was started alone.
    """

    folder: Path
    words: list[str]
    choices: dict[str, Any]
    sources: list[str]
    job: int | None

    @classmethod
    def of(cls, folder: Path) -> Start:
        """
        Raises:
            OSError: the folder does not say it, or cannot be read.
        """
        try:
            words = OmegaConf.to_container(OmegaConf.load(folder / WORDS))
        except (UnicodeError, YAMLError):
            words = None
        if not isinstance(words, list):
            raise FileNotFoundError(ENOENT, "not whole", str(folder / WORDS))
        path = folder / ".hydra" / "hydra.yaml"
        about = OmegaConf.load(path) if path.exists() else OmegaConf.create()
        sources = [
            f"{one.schema}://{one.path}"
            for one in OmegaConf.select(about, "hydra.runtime.config_sources") or ()
            if one.provider not in PROGRAMS_OWN
        ]
        choices = OmegaConf.select(about, "hydra.runtime.choices") or {}
        return cls(folder, words, choices, sources, OmegaConf.select(about, "hydra.job.num"))  # None for ??? too

    def then(self, now: Sequence[str]) -> list[str]:
        """The words, and those of now, without what these set, or choose another of: that group's options go with it.

        Raises:
            UserError: a folder with the run's files of options is not there any more.
        """
        anew = self._chosen_anew(now)
        given = {*NEVER_AGAIN, *anew, *(word.partition("=")[0] for word in now)}
        options = tuple(f"{group.rpartition('@')[2]}." for group in anew)
        before = [word for word in self.words if word.partition("=")[0] not in given]
        before = [word for word in before if not word.lstrip("+~").startswith(options)]
        return [*self._searchpath(now), *before, *now]

    def _chosen_anew(self, now: Sequence[str]) -> set[str]:
        """Groups that words choose something else of, by themselves or, as codecs=none does, by what they choose."""
        anew = set()
        for word in now:
            group, _, name = word.lstrip("+").partition("=")
            files = {path.stem: path for path in (CONF / group.partition("@")[0]).glob("*.yaml")}
            is_choice = name in files or (group in self.choices and not name.startswith("{"))
            if is_choice and word not in self.words and self.choices.get(group) != name:
                text = files[name].read_text(encoding="utf-8") if name in files else ""
                anew |= {group, *re.findall(r"override /([\w@]+):", text)}
        return anew

    def _searchpath(self, now: Sequence[str]) -> list[str]:
        if not self.sources or any(word.startswith(ELSEWHERE) for word in now):
            return []
        for source in self.sources:
            scheme, _, path = source.partition("://")
            if scheme == "file" and not os.path.isdir(path):
                raise UserError(
                    f"{self.folder} was started with options in {path}, which is not there any more: name the folder"
                    " that they are in now with hydra.searchpath=[file://<folder>]"
                )
        return [f"hydra.searchpath=[{','.join(map(quoted, self.sources))}]"]
