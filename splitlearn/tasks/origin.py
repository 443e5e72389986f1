"""What a client's samples are a part of, and whether the parts of several clients go together."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from splitlearn.seeds import drawing_from
from splitlearn.tasks.partition import file_of, labels, source_of

NUM_LOOKED_AT = 64  # samples of which a fingerprint has more than the label
MAX_SAMPLES = 1 << 53
MAX_WORD = 64


@dataclass(frozen=True)
class Origin:
    """The data set that a client's samples are of, as the server is told of it.

    Attributes:
        partition: how it is shared out over the clients; "none": it is this client's alone.
        num_train, num_test: samples in it.
        train, test: their fingerprints; "" where there are none.
        unreadable_train, unreadable_test: files of this client's part that are left out (data.skip_unreadable).
    """

    partition: str
    num_train: int
    num_test: int
    train: str
    test: str
    unreadable_train: int = 0
    unreadable_test: int = 0

    @property
    def is_own(self) -> bool:
        return self.partition == "none"

    @classmethod
    def parse(cls, told: Any) -> Origin:
        """
        Raises:
            ValueError: what was told is no data set; says what is wrong.
        """
        if not isinstance(told, dict) or told.keys() != {field.name for field in fields(cls)}:
            raise ValueError("it does not say what its samples are a part of")
        origin = cls(**told)
        for name in ("num_train", "num_test", "unreadable_train", "unreadable_test"):
            if type(told[name]) is not int or not 0 <= told[name] <= MAX_SAMPLES:
                raise ValueError(f"{name} of its data set is not a number from 0 to {MAX_SAMPLES}")
        for name in ("partition", "train", "test"):
            if type(told[name]) is not str or len(told[name]) > MAX_WORD:
                raise ValueError(f"{name} of its data set is not a word of up to {MAX_WORD} letters")
        return origin


def fingerprint(dataset: Dataset) -> str:
    """A word that data sets of other samples do not have; "" of none.

    It is of the number of samples, of all labels where they are known without loading the samples, and of some evenly
    spaced samples: a file's name and size, or the bytes of an array that the data set keeps. Of others it is shape and
    mean, rounded, since machines differ in the last bits; and not even these where samples are drawn anew each time.
    """
    if not len(dataset):
        return ""
    digest = hashlib.sha256(f"{len(dataset)}".encode())
    if (known := labels(dataset)) is not None and np.issubdtype(known.dtype, np.integer):
        digest.update(known.astype("<i8").tobytes())
    numbers = np.unique(np.linspace(0, len(dataset) - 1, NUM_LOOKED_AT).astype(int)).tolist()
    found = []
    for seed in range(2):
        with drawing_from(seed):
            found.append([_look(*source_of(dataset, number)) for number in numbers])
    if found[0] == found[1]:
        for _, seen in found[0]:
            digest.update(repr(seen).encode(errors="backslashreplace"))
    return digest.hexdigest()[:32]


def _look(source: Dataset, number: int) -> tuple[bytes, Any]:
    """A sample as exactly as it can be compared within this process, and as it can be with other machines' samples."""
    kept = getattr(source, "data", None)
    try:
        if path := file_of(source, number):
            return b"", (os.path.relpath(path, getattr(source, "root", os.path.dirname(path))), os.path.getsize(path))
        if isinstance(kept, (np.ndarray, torch.Tensor)) and len(kept) == len(source):
            return b"", hashlib.sha256(np.asarray(kept[number]).tobytes()).hexdigest()
        sample = source[number]
    except Exception:  # whatever it is, loading the sample tells
        return b"", None
    arrays = []
    for part in sample if isinstance(sample, (tuple, list)) else (sample,):
        with suppress(TypeError, ValueError):
            arrays.append(np.asarray(part, dtype=np.float64))
    exact = hashlib.sha256(b"".join(array.tobytes() for array in arrays)).digest()
    return exact, [(array.shape, round(float(array.mean()), 1)) for array in arrays if array.size]


def disagreement(client: int, origin: Origin, others: Mapping[int, Origin], chosen: str) -> str | None:
    """Why a client's data do not go together with the other clients', in a sentence; None if they do.

    Args:
        client: whose data they are.
        origin: of them.
        others: the data sets of others.
        chosen: the configuration's partition.
    """
    for other, its in others.items():
        if its.partition != origin.partition:
            return (
                f"client {client} has partition={origin.partition}, client {other} partition={its.partition}, which"
                f" partition={chosen} came to there: set partition=none for clients with data of their own, or"
                " partition=iid for one data set that they share, on all ranks"
            )
        if not origin.is_own and (its.train, its.test) != (origin.train, origin.test):
            what = "data" if its.train != origin.train else "test data"
            return (
                f"client {client}'s {what} are not client {other}'s: partition={origin.partition} shares one data set"
                " out; set partition=none on all ranks if each client has data of its own"
            )
        if origin.is_own and chosen != "none" and its.train == origin.train != "":
            return (
                f"client {client} has the same training samples as client {other}, and both would train on all of"
                " them: set partition=iid on all ranks to share them out, or partition=none if it is meant"
            )
    return None


def same_data(origins: Mapping[int, Origin]) -> str | None:
    """What to tell of clients that have the same data each; None where there are none."""
    for name, what in (("train", "training"), ("test", "test")):
        first: dict[str, int] = {}
        for client, origin in origins.items():
            other = first.setdefault(getattr(origin, name), client)
            if origin.is_own and getattr(origin, name) and other != client:
                return f"clients {other} and {client} have the same {what} samples (partition=none)"
    return None
