"""The texts: embedded plays, or any files, as tokens in windows of one length."""

from __future__ import annotations

import json
import lzma
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.utils.data import Dataset

from splitlearn.errors import UserError
from splitlearn.tasks.language.tokens import Bytes, Trained

PLAYS = "shakespeare.json.xz"  # {"train": {play: text}, "test": {…}}; made by scripts/pack_plays.py
NAMES = ("shakespeare", "text")
WHAT = ("training", "held-out")


class Windows(Dataset):
    """Texts, one after the other, in windows of `context` + 1 tokens: inputs are all but the last, targets all but the
    first. No token is in two windows; what is left at the end is dropped.

    Args:
        documents: (N) tokens of each text.
        context: T.
        sizes: (N) bytes that each token stands for, of each text; None where nobody asks.

    Attributes:
        data: (windows, T + 1).
        targets: (windows) the document that each begins in, by its number: what `partition` shares out by.
        num_bytes: (windows) what the targets of each stand for; None without sizes.
    """

    def __init__(self, documents: list[np.ndarray], context: int, sizes: list[np.ndarray] | None = None):
        stream, size = np.concatenate([np.empty(0, np.uint8), *documents]), context + 1
        number = len(stream) // size
        self.data = torch.from_numpy(stream[: number * size]).view(number, size)
        ends = np.cumsum([len(document) for document in documents])
        self.targets = np.searchsorted(ends, np.arange(number) * size, side="right")
        self.num_bytes: np.ndarray | None = None
        if sizes is not None:
            stream = np.concatenate([np.empty(0, np.int64), *sizes])
            self.num_bytes = stream[: number * size].reshape(number, size)[:, 1:].sum(1)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        window = self.data[index].long()
        return window[:-1], window[1:]


@dataclass(frozen=True)
class Texts:
    """
    Attributes:
        train, test: windows; there may be none for test, and these know their bytes.
    """

    train: Windows
    test: Windows


def build(cfg: DictConfig, tokenizer: Bytes | Trained, context: int) -> Texts:
    """What the config group `data` describes.

    Args:
        cfg: `data`.
        tokenizer: of its texts.
        context: of a window.

    Raises:
        UserError: there are no such texts, they cannot be read, or are too short.
    """
    texts, held_out = plays() if cfg.name == "shakespeare" else (files(cfg.root, "data.root"), None)
    if held_out is None and cfg.test_root is not None:
        held_out = files(cfg.test_root, "data.test_root")
    share = cfg.test_fraction if held_out is None else 0
    train, sizes = _encoded(texts, tokenizer, cfg, share)
    if held_out is not None:
        test, sizes = _encoded(held_out, tokenizer, cfg, 1)
    else:
        ends = [len(tokens) - len(own) for tokens, own in zip(train, sizes, strict=True)]
        test = [tokens[end:] for tokens, end in zip(train, ends, strict=True)]
        train = [tokens[:end] for tokens, end in zip(train, ends, strict=True)]
    found, wants_test = [Windows(train, context), Windows(test, context, sizes)], held_out is not None or share > 0
    for windows, documents, what, is_needed in zip(found, (train, test), WHAT, (True, wants_test), strict=True):
        if is_needed and not len(windows):
            raise UserError(
                f"data={cfg.name} has {sum(map(len, documents)):,} {what} tokens, and a window needs {context + 1}:"
                " give more text, or lower task.context"
                + ", or raise data.test_fraction"
                * (what == WHAT[1] and held_out is None)
            )
    return Texts(*found)


def plays() -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Plays of Shakespeare's by their names, to train on and held out."""
    kept = json.loads(lzma.decompress(resources.files(__package__).joinpath(PLAYS).read_bytes()))
    return tuple({name: text.encode() for name, text in kept[part].items()} for part in ("train", "test"))


def files(root: str | None, key: str) -> dict[str, bytes]:
    """A file, or all files in a folder and those below it, by their paths, in order; without hidden ones.

    Raises:
        UserError: they are not there, or cannot be read.
    """
    if root is None:
        raise UserError(f"data=text needs a file or a folder of texts: set {key}=<file or folder>")
    top = Path(root).expanduser()
    if not top.exists():
        raise UserError(f"{key}={root} does not exist: set it to a file or a folder of texts")
    paths = [top] if top.is_file() else sorted(path for path in top.rglob("*") if path.is_file())
    paths = [path for path in paths if not any(part.startswith(".") for part in path.relative_to(top).parts)]
    if not paths:
        raise UserError(f"{key}={root} holds no files: set it to a file or a folder of texts")
    try:
        return {str(path): path.read_bytes() for path in paths}
    except OSError as error:
        raise UserError(f"{key}={root} cannot be read ({error}): let this user read it, or set another") from None


def _encoded(
    texts: dict[str, bytes], tokenizer: Bytes | Trained, cfg: DictConfig, share: float
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Tokens of each text, and bytes of those that are its last share (see Trained.encode_sized)."""
    found = []
    for name, text in texts.items():
        try:
            found.append(tokenizer.encode_sized(text, share))
        except UnicodeDecodeError as error:
            raise UserError(
                f"{name} is no UTF-8 text ({error.reason} at byte {error.start}), which data.tokenizer={cfg.tokenizer}"
                " needs: convert it, take it out of data.root, or set data.tokenizer=bytes"
            ) from None
    return tuple(map(list, zip(*found, strict=True)))
