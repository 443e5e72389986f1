"""Image folders as people have them: which folders are for training and test, and which are classes."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from torchvision import datasets

from splitlearn.errors import UserError
from splitlearn.tasks.classes import normal
from splitlearn.tasks.image_classification.images import EXTENSIONS
from splitlearn.tasks.loading import TEST, TRAIN

NOT_MEANT = {"__macosx", "__pycache__", "@eadir", "lost+found", "$recycle.bin", "thumbs.db"}


class Folder(datasets.ImageFolder):
    """Images in a folder for each class, without what is hidden.

    Args:
        part: where they are.
        classes: names of all classes, in the order of their labels.
        loader: as of torchvision's ImageFolder.
    """

    def __init__(self, part: Part, classes: list[str], loader):
        self._numbers = {name: classes.index(normal(name)) for name in part.folders}
        self._names = classes
        is_meant = partial(_is_image_below, str(part.root))
        super().__init__(str(part.root), loader=loader, is_valid_file=is_meant, allow_empty=True)

    def find_classes(self, directory):
        return self._names, self._numbers


@dataclass
class Part:
    """The training or the test images: a folder, and the names of those in it that are classes."""

    root: Path
    folders: list[str]

    @property
    def classes(self) -> list[str]:
        return sorted({normal(name) for name in self.folders})


@dataclass
class Layout:
    """What is where in a folder.

    Attributes:
        train, test: None where there are none.
        notes: what the user should know of it.
    """

    train: Part | None
    test: Part | None
    notes: list[str] = field(default_factory=list)


def layout_of(root: Path, classes: Sequence[str] | None = None) -> Layout:
    """Finds training and test images in a folder, or in the only one that is in it.

    Folders with the usual names of splits, whatever their case, are splits where they hold folders of images; one that
    holds images itself is a class. Without a folder for training, all classes that are there are.

    Args:
        root: of the data.
        classes: all there may be; None: as many as there are folders with images. One of these names may be empty.

    Raises:
        UserError: there are no images in class folders, or more than one folder for the same.
    """
    while True:
        folders = visible_folders(root, classes)
        splits = [path for path in folders if not has_images(path, below=False) and visible_folders(path, classes)]
        train, tests = _named(splits, TRAIN, root), [_named(splits, names, root) for names in TEST]
        found = [path for path in (train, *tests) if path]
        if found or len(folders) != 1 or folders != splits or folders[0].name in (classes or ()):
            break
        root = folders[0]  # that an archive was unpacked into
    test = next((path for path in tests if path), None)
    others = [path for path in folders if path not in found]
    notes = []
    if train is None:
        unlabelled = [path.name for path in others if _is_of(path.name, TRAIN.union(*TEST))]
        if unlabelled and len(unlabelled) == len(others):
            raise UserError(
                f"data.root={root}: {', '.join(f'{name}/' for name in unlabelled)} hold no class folders: put the"
                f" images of each class into a folder of its own, such as {root / unlabelled[0]}/<class>/"
            )
        if unlabelled:
            notes.append(f"{root}: {', '.join(unlabelled)} has images of its own, and is taken for a class")
    elif unused := [path.name for path in folders if path not in (train, test)]:
        where = f", is tested on {test.name}/" if test else ""
        notes.append(f"{root}: trains on {train.name}/{where}, and leaves out {', '.join(unused)}")
    parts = []
    for path, inside in ((train or root, None if train else others), (test, None)):
        if path is None:
            parts.append(None)
            continue
        path, inside = (path, inside) if inside is not None else _unwrapped(path, classes)
        names = [folder.name for folder in inside]
        for folder in inside:
            below = {child.name for child in visible_folders(folder, None)}
            if len(below) > 1 and all(_is_of(name, TRAIN.union(*TEST)) for name in below):
                raise UserError(
                    f"data.root={root}: {folder} holds {' and '.join(sorted(below))}, but splits have to be above"
                    " classes, as in root/train/<class>/ and root/test/<class>/"
                )
        if unknown := [name for name in names if classes is not None and normal(name) not in classes]:
            raise UserError(
                f"data.root={root}: the folder {path / unknown[0]} is not in data.classes=[{', '.join(classes)}]: add"
                " it there, rename it or remove it"
            )
        parts.append(Part(path, names) if names else None)
    layout = Layout(*parts, notes)
    if layout.train is None and layout.test is None:
        raise UserError(
            f"data.root={root} is no image folder: it holds no class folders with images"
            f" ({', '.join(sorted(EXTENSIONS)[:4])}, …); put those of each class into a folder of its own"
        )
    return layout


def visible_folders(root: Path, classes: Sequence[str] | None) -> list[Path]:
    """Folders in a folder that hold images, or are a class by its name, in order."""
    with os.scandir(root) as entries:
        names = [entry.name for entry in entries if not is_hidden(entry.name) and entry.is_dir()]
    paths = [root / name for name in sorted(names)]
    return [path for path in paths if normal(path.name) in (classes or ()) or has_images(path)]


def has_images(folder: Path, below: bool = True) -> bool:
    """Whether there is an image in a folder, or `below` it."""
    inside = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                continue
            if entry.is_dir():
                inside.append(Path(entry.path))
            elif entry.name.lower().endswith(EXTENSIONS):
                return True
    return below and any(map(has_images, inside))


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in NOT_MEANT


def _is_image_below(root: str, path: str) -> bool:
    return path.lower().endswith(EXTENSIONS) and not any(map(is_hidden, path[len(root) :].split(os.sep)))


def _is_of(name: str, names: set[str]) -> bool:
    """Whether one of the words in a folder's name is one of these: seg_train, TrainingSet and "Test Data" are."""
    return any(word.lower() in names for word in re.findall("[A-Z]?[a-z]+|[A-Z]+", name))


def _named(splits: list[Path], names: set[str], root: Path) -> Path | None:
    """The folder of this kind; one whose name is the word alone comes before one with more words."""
    found = [path for path in splits if _is_of(path.name, names)]
    if names is not TRAIN:
        found = [path for path in found if not _is_of(path.name, TRAIN)]
    found = [path for path in found if path.name.lower() in names] or found
    if len(found) > 1:
        raise UserError(
            f"data.root={root} has {' and '.join(f'{path.name}/' for path in found)} for the same: rename all but one"
            " of them, or set data.root to a folder with one"
        )
    return found[0] if found else None


def _unwrapped(path: Path, classes: Sequence[str] | None) -> tuple[Path, list[Path]]:
    """A split and its class folders, where these may be in a folder of their own, as in seg_train/seg_train/<class>."""
    inside = visible_folders(path, classes)
    while len(inside) == 1 and not has_images(inside[0], below=False) and inside[0].name not in (classes or ()):
        path, inside = inside[0], visible_folders(inside[0], classes)
    return path, inside
