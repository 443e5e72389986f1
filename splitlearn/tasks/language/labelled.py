"""Texts with one label each, from tables: comma or tab separated, or a JSON object a line."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, ListConfig
from torch import Tensor
from torch.utils.data import Dataset

from splitlearn.errors import UserError
from splitlearn.segments.forward import ENDED
from splitlearn.tasks.classes import given_classes, in_words, normal
from splitlearn.tasks.language.tokens import Bytes, Trained
from splitlearn.tasks.loading import TEST, TRAIN, held_out

NAME = "text_classification"
SUFFIXES = (".csv", ".tsv", ".jsonl")
LONGEST_FIELD = 1 << 27  # letters


@dataclass(frozen=True)
class Row:
    """A text with its label, and where it is from, for people."""

    text: str
    label: str
    place: str


class Texts(Dataset):
    """Texts as tokens, all filled up to one length: (longest) int64, with -1 after the end, and a label.

    Args:
        tokens: (N) of each.
        targets: (texts) labels.
        longest: tokens of a text, at most.
    """

    def __init__(self, tokens: list[np.ndarray], targets: np.ndarray, longest: int):
        self.tokens, self.targets, self.longest = tokens, targets, longest

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        found = torch.full((self.longest,), ENDED)
        found[: len(self.tokens[index])] = torch.from_numpy(self.tokens[index]).long()
        return found, int(self.targets[index])


def build(
    cfg: DictConfig, seed: int, tokenizer: Bytes | Trained, tell: Callable[[str], None] = lambda note: None
) -> tuple[Texts, Texts, list[str]]:
    """Training texts, test texts and names of the classes that the config group `data` describes.

    Args:
        cfg: `data`.
        seed: draws the held-out part.
        tokenizer: of the texts.
        tell: is given what the user should know.

    Raises:
        UserError: there are no such texts, or they cannot be read.
    """
    train_file, test_file = _files(cfg)
    train = [] if train_file is None else _rows(train_file, cfg)
    if test_file is not None:
        test = _rows(test_file, cfg)
    else:
        parts = held_out(train, cfg.test_fraction, seed)
        train, test = ([train[number] for number in part] for part in parts)
    known = given_classes(cfg)
    classes = known or sorted({row.label for row in chain(train, test)})
    numbers = {name: number for number, name in enumerate(classes)}
    for row in chain(train, test) if known else ():
        if row.label not in numbers:
            raise UserError(
                f"{row.place} has the label {row.label}, which is not in data.classes=[{in_words(classes)}]: add it"
                " there, or take the line out"
            )
    built, empty, cut_off = [], 0, 0
    for rows in (train, test):
        tokens, longer = tokenizer.encode_all([row.text for row in rows], cfg.max_length) if rows else ([], 0)
        kept = [number for number, found in enumerate(tokens) if len(found) and rows[number].text]
        empty, cut_off = empty + len(tokens) - len(kept), cut_off + longer
        targets = np.array([numbers[rows[number].label] for number in kept], np.int64)
        built.append(Texts([tokens[number] for number in kept], targets, cfg.max_length))
    if empty:
        tell(f"{empty:,} texts are left out: there is nothing in them")
    if cut_off:
        total = len(train) + len(test)
        tell(f"{cut_off:,} of {total:,} texts are cut off after {cfg.max_length} tokens (data.max_length)")
    return *built, classes


def _files(cfg: DictConfig) -> tuple[Path | None, Path | None]:
    """The file of training texts, and of test texts where they have one of their own; a server may have the latter."""
    given = _path(cfg.test_root, "data.test_root") if cfg.test_root is not None else None
    if given is not None and given.is_dir():
        raise UserError(f"data.test_root={cfg.test_root} is a folder: set it to a file of test texts")
    if cfg.root is None:
        raise UserError("data=text_classification needs a table of texts: set data.root=<file or folder>")
    root = _path(cfg.root, "data.root")
    if root.is_file():
        return root, given
    found = sorted(path for path in root.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    found = [path for path in found if not path.name.startswith(".")]
    train = [path for path in found if path.stem.lower() in TRAIN]
    test = next(([path for path in found if path.stem.lower() in names] for names in TEST if _any(found, names)), [])
    if not train and not test and len(found) == 1:
        train = found
    if len(train) > 1 or len(test) > 1 or not (train or test):
        names = in_words([path.name for path in found]) or "none of these"
        raise UserError(
            f"data.root={cfg.root} needs one file of training texts, such as train.csv (or .tsv, .jsonl), and at most"
            f" one of test texts, such as test.csv; it has {names}"
        )
    return train[0] if train else None, given or (test[0] if test else None)


def _any(paths: list[Path], names: set[str]) -> bool:
    return any(path.stem.lower() in names for path in paths)


def _path(name: str, key: str) -> Path:
    path = Path(name).expanduser()
    if not path.exists():
        raise UserError(f"{key}={name} does not exist: set it to a file of texts ({', '.join(SUFFIXES)})")
    if path.is_file() and path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{key}={name} is no {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file: rename or convert it")
    return path


def _rows(path: Path, cfg: DictConfig) -> list[Row]:
    keys = {"data.text_column": cfg.text_column, "data.label_column": cfg.label_column}
    found = []
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            records = _objects if path.suffix.lower() == ".jsonl" else _table
            for line, record in records(path, file, cfg, keys):
                text, label = (_word(record[name]) for name in keys.values())
                if text is None or not label:
                    what = f"no text ({cfg.text_column})" if text is None else f"no label ({cfg.label_column})"
                    raise UserError(f"{path}, line {line} has {what}: take it out, or fill it in")
                _require_whole(text + label, f"{path}, line {line}")
                found.append(Row(text, normal(label), f"{path}, line {line}"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no UTF-8 text ({error.reason} at byte {error.start}): convert it") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}): let this user read it, or set another") from None
    return found


def _word(value: Any) -> str | None:
    """A field as a text; None of what is none."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return {True: "true", False: "false"}.get(value) if isinstance(value, bool) else None
    return str(value).strip()


def _require_whole(words: str, place: str) -> None:
    try:
        words.encode()
    except UnicodeEncodeError as error:  # JSON may escape one half of a pair
        half = ascii(words[error.start]).strip("'")
        raise UserError(f"{place} has half of a character, {half}: take it out, or write the other half too") from None


def _table(path: Path, file: Any, cfg: DictConfig, keys: dict[str, str]) -> Iterator[tuple[int, dict[str, str]]]:
    csv.field_size_limit(LONGEST_FIELD)
    is_csv = path.suffix.lower() == ".csv"
    rows = csv.reader(file, strict=True) if is_csv else csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
    names = columns_of(cfg)
    try:
        for row in rows:
            if not row:
                continue
            if names is None:
                names = [name.strip() for name in row]
                _require(names, path, keys)
                continue
            if len(row) != len(names):
                raise UserError(
                    f"{path}, line {rows.line_num} has {len(row)} fields, and there are {len(names)} columns"
                    f" ({in_words(names)}): mend it, or name all columns with data.columns=[…]"
                )
            yield rows.line_num, dict(zip(names, row, strict=True))
    except csv.Error as error:
        raise UserError(f"{path}, line {rows.line_num} is no table ({error}): mend it") from None


def columns_of(cfg: DictConfig) -> list[str] | None:
    """The names of data.columns; None where the first line of a table has them.

    Raises:
        UserError: they are no names, or not with those of the texts and the labels.
    """
    if cfg.columns is None:
        return None
    names = [str(name) for name in cfg.columns] if isinstance(cfg.columns, (list, ListConfig)) else []
    if not names or len(set(names)) != len(names):
        raise UserError(
            f"data.columns={cfg.columns} has to be null, or a list of different names, such as [id,label,text]"
        )
    _require(names, "data.columns", {"data.text_column": cfg.text_column, "data.label_column": cfg.label_column})
    return names


def _require(names: list[str], whose: Any, keys: dict[str, str]) -> None:
    for key, wanted in keys.items():
        if wanted not in names:
            raise UserError(f"{whose} has no column {wanted}, but {in_words(names)}: set {key} to one of them")


def _objects(path: Path, file: Any, cfg: DictConfig, keys: dict[str, str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, text in enumerate(file, start=1):
        if not text.strip():
            continue
        try:
            found = json.loads(text)
        except ValueError as error:
            raise UserError(f"{path}, line {line} is no JSON ({error}): mend it") from None
        if not isinstance(found, dict):
            raise UserError(f"{path}, line {line} is no JSON object with {' and '.join(keys.values())}: mend it")
        _require([*found], f"{path}, line {line}", keys)
        yield line, found
