import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from samples import image_folder
from torch.utils.data import Subset

from splitlearn.errors import UserError
from splitlearn.tasks.image_classification import sources
from splitlearn.tasks.image_classification.transforms import crop_and_flip
from splitlearn.tasks.partition import labels


def test_digits_have_their_shapes(digits):
    train, test, classes = digits
    assert (len(train), len(test), classes) == (1437, 360, list("0123456789"))
    image, label = train[0]
    assert image.shape == (3, 32, 32) and image.dtype == torch.float32
    assert label.dtype == torch.int64
    assert all(part.tensors[0].min() == -1 and part.tensors[0].max() == 1 for part in (train, test))


def test_digits_are_disjoint_and_stratified(digits):
    train, test, _ = digits
    images = torch.cat([train.tensors[0], test.tensors[0]])[:, 0].flatten(1)
    assert len(images.unique(dim=0)) == 1797
    shares = [np.bincount(labels(part)) for part in (train, test)]
    assert (abs(shares[1] / (shares[0] + shares[1]) - 0.2) < 0.005).all()


def test_digits_are_split_alike_for_every_seed(digits, config):
    again = sources.build(config().data, 7)
    assert torch.equal(again[0].tensors[0], digits[0].tensors[0])


def test_image_size_and_limits_are_followed(config):
    cfg = config("data.image_size=20", "data.max_train_samples=100", "data.max_test_samples=5000").data
    train, test, _ = sources.build(cfg, 0)
    assert (len(train), len(test)) == (100, 360)
    assert train[0][0].shape == (3, 20, 20)
    assert np.array_equal(train.indices, sources.build(cfg, 0)[0].indices)
    assert not np.array_equal(train.indices, sources.build(cfg, 1)[0].indices)
    assert len(set(train.indices)) == 100
    assert labels(train).tolist() == [int(label) for _, label in train]


@pytest.mark.parametrize("augment", ["none", "crop_flip"])
def test_without_a_mean_digits_are_not_normalised(augment, config):
    for part in sources.build(config("data.mean=null", f"data.augment={augment}").data, 0)[:2]:
        images = torch.stack([part[index][0] for index in range(50)])
        assert images.min() == 0 and 0.9 < images.max() <= 1


def test_unknown_data_and_wrong_number_of_classes_are_refused(config):
    with pytest.raises(UserError, match=r"data=mnist is unknown.*digits"):
        sources.build(config("data.name=mnist").data, 0)
    with pytest.raises(UserError, match=r"data.num_classes=11 .*10 classes"):
        sources.build(config("data.num_classes=11").data, 0)


@contextmanager
def as_no_owner():
    """As a user who may read only what all may, where the tests are run by root, who may read anything."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


@pytest.mark.parametrize(
    "name, inner", [("image_folder", ""), ("image_folder", "train"), ("cifar10", "cifar-10-batches-py/data_batch_1")]
)
def test_data_that_this_user_may_not_read_are_one_sentence(name, inner, config):
    with tempfile.TemporaryDirectory() as root:  # in pytest's own folder no other user may look
        Path(root).chmod(0o755)
        path = Path(root) / inner
        path.parent.mkdir(exist_ok=True)
        path.touch() if name == "cifar10" else path.mkdir(exist_ok=True)
        path.chmod(0)
        cfg = config(f"data={name}", f"data.root={root}").data
        with pytest.raises(UserError, match=r"^data\.root=.*Permission denied.*set data\.root to"), as_no_owner():
            sources.build(cfg, 0)


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_image_folder_with_its_own_test_images(held_out, folder, config):
    root = folder("train/a", "train/b", "train/c", f"{held_out}/a", f"{held_out}/b", f"{held_out}/c")
    train, test, classes = sources.build(image_folder(config, root), 0)
    assert (len(train), len(test), classes) == (15, 15, ["a", "b", "c"])
    assert train[0][0].shape == test[0][0].shape == (3, 16, 16)
    assert labels(train).tolist() == [0] * 5 + [1] * 5 + [2] * 5


@pytest.mark.parametrize("inner", ["", "train/"])
@pytest.mark.parametrize("fraction, num_test", [(0.2, 2), (0.5, 5), (0.001, 1)])
def test_image_folder_without_holds_out_a_part(inner, fraction, num_test, folder, config):
    root = folder(f"{inner}a", f"{inner}b")
    cfg = image_folder(config, root, f"data.test_fraction={fraction}")
    train, test, classes = sources.build(cfg, 0)
    assert (len(test), classes) == (num_test, ["a", "b"])
    assert sorted([*train.indices, *test.indices]) == list(range(10))
    assert np.array_equal(sources.build(cfg, 0)[1].indices, test.indices)
    assert labels(test).tolist() == [label for _, label in test]


def test_held_out_images_are_not_augmented(folder, config):
    cfg = image_folder(config, folder("a", "b"), "data.test_fraction=0.5")
    train, test, _ = sources.build(cfg, 0)
    assert isinstance(test, Subset) and torch.equal(test[0][0], test[0][0])
    # Padding of the random crop makes a one-grey image more than one grey.
    assert all(image.flatten(1).unique(dim=1).shape[1] == 1 for image, _ in test)
    assert any(train[-1][0].flatten(1).unique(dim=1).shape[1] > 1 for _ in range(30))


@pytest.mark.parametrize("augment", ["none", "crop_flip", "resized_crop"])
def test_images_have_the_asked_size_and_scale(augment, folder, config):
    root = folder("train/a", "test/a")
    for part in sources.build(image_folder(config, root, f"data.augment={augment}"), 0)[:2]:
        image, label = part[3]
        assert image.shape == (3, 16, 16) and image.dtype == torch.float32 and label == 0
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(image[:, 8, 8], (23 / 255 - mean) / std)


def test_crops_and_flips_are_of_each_image_of_a_batch():
    torch.manual_seed(0)
    image = torch.arange(1, 3 * 5 * 6 + 1).view(3, 5, 6)
    padded = torch.nn.functional.pad(image, (1, 1, 1, 1))
    ways = {
        (down, right, mirrored): crop.flip(2) if mirrored else crop
        for down in range(3)
        for right in range(3)
        for mirrored in (False, True)
        for crop in [padded[:, down : down + 5, right : right + 6]]
    }
    for dtype in (torch.uint8, torch.float32):
        found = crop_and_flip(image.to(dtype).expand(2000, -1, -1, -1), 1)
        assert found.dtype == dtype and found.shape == (2000, 3, 5, 6)
        counts = {way: sum(torch.equal(one, crop.to(dtype)) for one in found) for way, crop in ways.items()}
        assert sum(counts.values()) == 2000  # each is one of them,
        assert all(70 < count < 155 for count in counts.values())  # and none is likelier: 111 ± 10


@pytest.mark.parametrize("name", ["image_folder", "imagenet", "cifar10", "cifar100"])
def test_missing_folder_names_the_key(name, tmp_path, config):
    with pytest.raises(UserError, match=r"data\.root=.*nowhere does not exist"):
        sources.build(config(f"data={name}", f"data.root={tmp_path}/nowhere").data, 0)
    with pytest.raises(UserError, match=r"data\.root"):
        sources.build(config(f"data={name}", f"data.root={tmp_path}").data, 0)  # empty


def test_folder_that_is_not_given_names_the_key(config):
    with pytest.raises(UserError, match=r"set data\.root="):
        sources.build(config("data=image_folder").data, 0)
