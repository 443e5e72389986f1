"""A user's own data set and transforms, by `_target_`."""

import random
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from samples import image_folder

from splitlearn.errors import UserError
from splitlearn.tasks import task_from
from splitlearn.tasks.image_classification import sources
from splitlearn.tasks.loading import client_data, loaders
from splitlearn.tasks.partition import labels

MODULE = """
import random
import numpy as np
import torch
from PIL import Image

class Base(torch.utils.data.Dataset):
    classes = ["dark", "bright"]

    def __init__(self, train, size=6, root=None):
        self.train, self.size, self.root = train, size, root

    def __len__(self):
        return self.size if self.train else 2

    def __getitem__(self, index):
        return self.image(index), self.label(index)

    def image(self, index):
        return Image.new("L", (10, 8), 255 * (index % 2))

    def label(self, index):
        return index % 2

class Pil(Base): pass

class Floats(Base):
    def image(self, index):
        return torch.full((3, 16, 16), index / 10)

class Arrays(Base):
    def image(self, index):
        return np.full((8, 8, 3), 255 * (index % 2), np.uint8)
    def label(self, index):
        return np.array([index % 2])

class Nameless(Base):
    classes = None

class Splits(Base):
    def __init__(self, split):
        super().__init__(split == "train")

class Whole(Base):
    def __init__(self, size=10):
        super().__init__(True, size)

class Drawn(Base):
    def image(self, index):
        return torch.tensor([random.random(), np.random.rand(), torch.rand(()).item()]).view(3, 1, 1).expand(3, 16, 16)

class OneChannel(Base):
    def image(self, index):
        return torch.zeros(1, 16, 16)

class Words(Base):
    def image(self, index):
        return "an image"

class NoPair(Base):
    def __getitem__(self, index):
        return self.image(index)

class Halves(Base):
    def label(self, index):
        return 0.5

class TooHigh(Base):
    def label(self, index):
        return 2

class Buggy(Base):
    def image(self, index):
        return {}["a"]

class Unreadable(Base):
    def image(self, index):
        if index == 3:
            raise OSError("no such file")
        return super().image(index)

class Endless(torch.utils.data.IterableDataset):
    classes = ["a"]

    def __iter__(self):
        return iter(())

class Broken(Base):
    def __init__(self, train):
        raise RuntimeError("no data\\nat all")

def function(train, size=4):
    return Pil(train, size)
"""


@pytest.fixture
def own(tmp_path, monkeypatch, config):
    """own("Pil", "data.image_size=16", …): training set, test set and classes."""
    (tmp_path / "my_data.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_data", raising=False)

    def build(name, *overrides):
        cfg = config("data=custom", f"data._target_=my_data.{name}", "data.image_size=16", *overrides)
        return sources.build(cfg.data, 0)

    return build


@pytest.mark.parametrize("name", ["Pil", "Arrays", "function", "Splits"])
def test_images_of_any_kind_become_tensors(name, own):
    train, test, classes = own(name)
    assert classes == ["dark", "bright"] and len(test) == 2 and len(train) == {"function": 4}.get(name, 6)
    for dataset in (train, test):
        for number in range(2):
            image, label = dataset[number]
            assert image.shape == (3, 16, 16) and image.dtype == torch.float32 and (image == number).all()
            assert label == number and type(label) is int


def test_further_keys_are_arguments(own):
    train, test, _ = own("Pil", "+data.size=9", "data.root=/somewhere")
    assert len(train) == 9 and len(test) == 2 and train.wrapped.root == "/somewhere"


def test_tensors_of_floats_stay_as_they_are(own):
    train, _, _ = own("Floats")
    assert torch.equal(train[3][0], torch.full((3, 16, 16), 0.3))
    normalised, _, _ = own("Floats", "data.mean=[0.3,0.3,0.3]", "data.std=[0.5,0.5,0.5]")
    assert normalised[3][0].abs().max() < 1e-6


def test_a_part_is_held_out_where_training_and_test_are_not_told_apart(own):
    train, test, _ = own("Whole", "data.test_fraction=0.3")
    assert (len(train), len(test)) == (7, 3) and sorted([*train.indices, *test.indices]) == list(range(10))


def test_a_torchvision_data_set_needs_no_code(config):
    name = "data._target_=torchvision.datasets.FakeData"
    cfg = config("data=custom", name, "data.num_classes=10", "+data.size=20", "data.image_size=16").data
    train, test, classes = sources.build(cfg, 0)
    assert (len(train), len(test), len(classes)) == (16, 4, 10) and train[0][0].shape == (3, 16, 16)


def test_its_classes_are_its_own_or_the_lists(own):
    assert own("Nameless", "data.num_classes=3")[2] == ["0", "1", "2"]
    assert own("Nameless", "data.classes=[a,b]")[2] == ["a", "b"]
    train, _, classes = own("Pil", "data.classes=[bright,grey,dark]")
    assert classes == ["bright", "grey", "dark"] and [train[number][1] for number in range(2)] == [2, 0]


def test_labels_are_known_where_it_has_them(own, tmp_path):
    train, _, _ = own("Pil")
    assert labels(train) is None
    train.wrapped.targets = [0, 1] * 3
    again = type(train)(train.wrapped, train.pipeline, 2, [1, 0])
    assert labels(again).tolist() == [1, 0] * 3


@pytest.mark.parametrize("listed", ["targets", "labels"])
@pytest.mark.parametrize("label", [2, -1])
def test_labels_that_it_lists_are_of_its_classes(listed, label, own):
    train, _, _ = own("Pil")
    setattr(train.wrapped, listed, [0, 1, label] * 2)
    words = f"^data._target_=mine.D: {listed} has the label {label}, but there are 2 classes: number them from 0$"
    with pytest.raises(UserError, match=words):
        type(train)(train.wrapped, train.pipeline, 2, [1, 0], "data._target_=mine.D")


@pytest.mark.parametrize(
    "name, words",
    [
        ("Nothing", r"cannot be imported: /.*/my_data\.py has no Nothing$"),
        ("Broken", r"cannot be called with \(train=True\): RuntimeError: no data; further keys of data"),
        ("Nameless", "has no attribute `classes`: set data.num_classes="),
        ("Endless", "gives a Endless, which is no data set"),
        ("NoPair", "sample 0 is a Image, and no pair of image and label"),
        ("Halves", "sample 0 has the label 0.5, which is no whole number"),
        ("TooHigh", r"sample 0 has the label 2, but there are 2 classes \(data.num_classes\)"),
        ("Buggy", r"sample 0 fails in my_data.py:\d+ with KeyError: 'a'"),
        ("Words", "sample 0: a str is no image"),
        (
            "OneChannel",
            r"there is a tensor of 1×16×16 float32, but the network takes 3×16×16.*v2.RGB.* in data.transform",
        ),
    ],
)
def test_a_mistake_in_it_is_one_sentence_that_names_the_key(name, words, own):
    with pytest.raises(UserError, match=rf"^data\._target_=my_data.{name}.* {words}") as error:
        own(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("override", ["+data.sizes=3", "+data.size={_target_: nowhere.Size}"])
def test_arguments_that_it_does_not_take_are_one_sentence(override, own):
    with pytest.raises(UserError, match=r"^data\._target_=my_data.Pil cannot be called with \(.*size.*\): ") as error:
        own("Pil", override)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("target", ["nowhere.Data", "Data", "null"])
def test_a_module_that_is_not_there_is_one_sentence(target, config):
    with pytest.raises(UserError, match=rf"^data(\._target_={target} cannot be imported|=custom needs)"):
        sources.build(config("data=custom", f"data._target_={target}").data, 0)


def test_number_of_classes_must_be_its_own(own):
    with pytest.raises(UserError, match=r"data.num_classes=3 but my_data.Pil has 2 classes: set 2, or null"):
        own("Pil", "data.num_classes=3")


def test_what_is_drawn_at_random_is_the_seeds_whatever_draws(own, config):
    def images(num_workers, batch):
        train, test, _ = own("Drawn")
        cfg = config("data=custom", "batch_size=2", f"data.num_workers={num_workers}", "partition=iid")
        loader, _ = loaders(train, test, 0, 1, cfg)
        loader.batch_sampler.start_at(2, batch)
        return torch.cat([images for images, _ in loader])

    before = random.getstate(), np.random.get_state()[1].tolist()
    whole = images(0, 0)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    assert torch.equal(images(0, 1), whole[2:]) and torch.equal(images(1, 0), whole)
    assert len(whole[:, :, 0, 0].unique()) == whole.shape[0] * 3


def test_its_samples_that_cannot_be_read_are_left_out_too(own, config, capsys):
    train, test, _ = own("Unreadable")
    cfg = config("data=custom", "data.skip_unreadable=true", "partition=none")
    data = client_data(train, test, {}, 0, 1, cfg)
    assert (data.num_train, data.origin.unreadable_train, data.origin.num_train) == (5, 1, 6)
    assert "client 0 leaves out 1 samples that cannot be read: 3" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"^sample 3 cannot be read \(no such file\)"):
        list(loaders(train, test, 0, 1, config("data=custom"))[0])
    with pytest.raises(UserError, match=r"^sample 3 cannot be read \(no such file\), and partition=dirichlet needs"):
        loaders(train, test, 0, 1, config("data=custom", "partition=dirichlet"))
    cfg = config("data=custom", "task.class_weights=balanced")
    with pytest.raises(UserError, match=r"^sample 3 cannot be read .*, and task\.class_weights=balanced needs its "):
        task_from(cfg).labelled(train, test, {"num_classes": 2}, 0, 1, cfg)


# Transforms


def test_a_list_of_transforms_comes_in_place_of_augment(folder, config):
    steps = "data.transform=[{_target_: torchvision.transforms.v2.Resize, size: [16, 16]},"
    steps += "{_target_: torchvision.transforms.v2.RandomHorizontalFlip, p: 1.0}]"
    root = folder("train/a", "test/a", count=1)
    Image.fromarray(np.repeat([[0, 255]], 9, 0).repeat(6, 1).astype(np.uint8)).save(root / "train" / "a" / "0.png")
    options = ["data.mean=null", "data.std=null", "data.augment=none"]
    flipped, _, _ = sources.build(image_folder(config, root, steps, *options), 0)
    plain, test, _ = sources.build(image_folder(config, root, *options), 0)
    assert torch.equal(flipped[0][0], plain[0][0].flip(-1)) and not torch.equal(flipped[0][0], plain[0][0])
    assert test[0][0].shape == (3, 16, 16)


def test_a_transform_that_normalises_is_not_followed_by_another(folder, config):
    normalise = "data.test_transform=[{_target_: torchvision.transforms.Resize, size: [16, 16]},"
    normalise += "torchvision.transforms.ToTensor, {_target_: torchvision.transforms.v2.ToDtype, dtype: {_target_:"
    normalise += " hydra.utils.get_object, path: torch.float32}, scale: true},"
    normalise += "{_target_: torchvision.transforms.Normalize, mean: [0, 0, 0], std: [2, 2, 2]}]"
    _, test, _ = sources.build(image_folder(config, folder("train/a", "test/a", count=1), normalise), 0)
    torch.testing.assert_close(test[0][0], torch.full((3, 16, 16), 20 / 255 / 2))


def test_digits_take_transforms_too(config):
    steps = "data.transform=[{_target_: torchvision.transforms.v2.Resize, size: [16, 16]}]"
    train, test, classes = sources.build(config("data.image_size=16", steps).data, 0)
    plain, _, _ = sources.build(config("data.image_size=16").data, 0)
    assert (len(train), len(test), len(classes)) == (1437, 360, 10)
    assert (train[5][0] - plain[5][0]).abs().max() < 0.02 and train[5][1] == int(plain[5][1])


@pytest.mark.parametrize(
    "steps, words",
    [
        ("5", "data.transform=5 has to be null, or a list"),
        ("[nowhere.Flip]", "data.transform: _target_=nowhere.Flip cannot be imported: there is no module"),
        ("[torchvision.transforms.v2.CenterCrop]", r"v2.CenterCrop cannot be made \(.*argument"),
        ("[{size: 3}]", "names no class"),
        (
            "[{_target_: torchvision.transforms.v2.CenterCrop, size: 4}]",
            "makes a tensor of 3×4×4 float32 of a tensor of",
        ),
        ("[{_target_: builtins.dict}]", "cannot be called with an image"),
        (
            "[{_target_: torchvision.transforms.v2.RandomCrop, size: 99}]",
            "data.transform cannot be applied to a tensor",
        ),
    ],
)
def test_a_mistake_in_transforms_is_one_sentence_that_names_the_key(steps, words, folder, config):
    with pytest.raises(UserError, match=rf"^(?s:.)*{words}") as error:
        train, _, _ = sources.build(image_folder(config, folder("train/a", "test/a"), f"data.transform={steps}"), 0)
        train[0]
    assert "data.transform" in str(error.value) and "\n" not in str(error.value)
