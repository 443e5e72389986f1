"""A user's own data set: data._target_ names a class or function that gives pairs of image and label."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import Dataset

from splitlearn.errors import UserError
from splitlearn.hydras import instantiate
from splitlearn.seeds import drawing_from
from splitlearn.targets import parameters_of
from splitlearn.tasks.classes import given_classes, normal
from splitlearn.tasks.image_classification.prepared import Prepared
from splitlearn.tasks.image_classification.transforms import Pipeline, first_line

OFFERED = ("root", "download", "num_classes")  # keys of ours that it gets if it has an argument for them
OURS = (
    *OFFERED,
    *(
        "_target_",
        "name",
        "classes",
        "image_size",
        "mean",
        "std",
        "augment",
        "transform",
        "test_transform",
        "test_fraction",
    ),
    *("num_workers", "keep_in_memory", "skip_unreadable", "max_train_samples", "max_test_samples"),
)


def build(cfg: DictConfig) -> tuple[Dataset, Dataset, list[str], bool]:
    """Training set, test set, names of the classes, and whether both sets are of the same samples, as neither is known.

    The class is called with train=True and train=False, or with split="train" and split="test", if it has an argument
    of this name; with those keys of the group that are not splitlearn's own; and with root, download and num_classes,
    if it has arguments for them.

    Raises:
        UserError: it cannot be imported or called, or does not give pairs of image and label.
    """
    if not cfg.get("_target_"):
        raise UserError("data=custom needs a class: set data._target_=<module>.<class>")
    name = f"data._target_={cfg._target_}"
    takes = parameters_of(cfg._target_, "data._target_")
    arguments = {key: value for key, value in cfg.items() if key not in OURS}
    arguments |= {key: cfg[key] for key in OFFERED if key in takes and cfg.get(key) is not None}
    ways: list[dict[str, Any]] = [{}]
    if "train" in takes and "train" not in arguments:
        ways = [{"train": True}, {"train": False}]
    elif "split" in takes and "split" not in arguments:
        ways = [{"split": "train"}, {"split": "test"}]
    datasets = []
    for way in ways:
        try:
            node = OmegaConf.create({"_target_": cfg._target_, "_convert_": "all", **arguments, **way})
            datasets.append(instantiate(node))
        except InstantiationException as error:
            cause = error.__cause__ or error
            called = ", ".join(f"{key}={value!r}" for key, value in (arguments | way).items())
            raise UserError(
                f"{name} cannot be called with ({called}): {type(cause).__name__}: {first_line(cause)}; further keys"
                " of data are its arguments"
            ) from None
        if not hasattr(datasets[-1], "__getitem__") or not hasattr(datasets[-1], "__len__"):
            kind = type(datasets[-1]).__name__
            raise UserError(f"{name} gives a {kind}, which is no data set with __getitem__ and __len__")
    classes, numbers = _classes(cfg, getattr(datasets[0], "classes", None), name)
    prepared = [
        Prepared(dataset, Pipeline(cfg, is_train, scales=True), len(classes), numbers, name, draws=True)
        for dataset, is_train in zip([datasets[0], datasets[-1]], (True, False), strict=True)
    ]
    with drawing_from(0), suppress(OSError):
        for dataset in prepared:
            if len(dataset):
                dataset[0]  # so that a mistake is told before the run starts
    return *prepared, classes, len(ways) == 1


def _classes(cfg: DictConfig, names: Any, name: str) -> tuple[list[str], list[int] | None]:
    """The run's classes, and their numbers for the data set's own."""
    if names is not None:
        names = [", ".join(map(str, one)) if isinstance(one, (tuple, list)) else str(one) for one in names]
    given = given_classes(cfg)
    if given is None:
        if names is None and cfg.num_classes is None:
            raise UserError(f"{name} has no attribute `classes`: set data.num_classes=<how many>")
        return names or [str(number) for number in range(cfg.num_classes)], None
    if names is None:
        return given, None
    if unknown := [one for one in map(normal, names) if one not in given]:
        raise UserError(f"{name} has the class {unknown[0]}, which is not in data.classes=[{', '.join(given)}]")
    return given, [given.index(normal(one)) for one in names]
