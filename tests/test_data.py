import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Subset, TensorDataset

from splitlearn import data
from splitlearn.errors import UserError


@pytest.fixture(scope="module")
def digits(config):
    return data.build(config().data, 0)


@pytest.fixture
def folder(tmp_path):
    """folder("train/a", "train/b", …, count=5): a folder of images of 12×9 pixels, of one grey each."""

    def make(*classes, count=5):
        for i, name in enumerate(classes):
            (tmp_path / name).mkdir(parents=True)
            for j in range(count):
                Image.new("RGB", (12, 9), (20 * i + j,) * 3).save(tmp_path / name / f"{j}.png")
        return tmp_path

    return make


def numbered(num_samples, num_classes=4):
    """A data set whose images are their own numbers."""
    numbers = torch.arange(num_samples)
    return TensorDataset(numbers.float().view(-1, 1, 1, 1).expand(-1, 3, 2, 2), numbers % num_classes)


def seen(loader, epoch=1, batch=0):
    """The batches of one epoch of a loader over `numbered`, from one on, as lists of numbers."""
    loader.batch_sampler.start_at(epoch, batch)
    return [images[:, 0, 0, 0].long().tolist() for images, _ in loader]


def test_digits_have_their_shapes(digits):
    train, test, num_classes = digits
    assert (len(train), len(test), num_classes) == (1437, 360, 10)
    image, label = train[0]
    assert image.shape == (3, 32, 32) and image.dtype == torch.float32
    assert label.dtype == torch.int64
    assert all(part.tensors[0].min() == -1 and part.tensors[0].max() == 1 for part in (train, test))


def test_digits_are_disjoint_and_stratified(digits):
    train, test, _ = digits
    images = torch.cat([train.tensors[0], test.tensors[0]])[:, 0].flatten(1)
    assert len(images.unique(dim=0)) == 1797
    shares = [np.bincount(data.labels(part)) for part in (train, test)]
    assert (abs(shares[1] / (shares[0] + shares[1]) - 0.2) < 0.005).all()


def test_digits_are_split_alike_for_every_seed(digits, config):
    again = data.build(config().data, 7)
    assert torch.equal(again[0].tensors[0], digits[0].tensors[0])


def test_image_size_and_limits_are_followed(config):
    cfg = config("data.image_size=20", "data.max_train_samples=100", "data.max_test_samples=5000").data
    train, test, _ = data.build(cfg, 0)
    assert (len(train), len(test)) == (100, 360)
    assert train[0][0].shape == (3, 20, 20)
    assert np.array_equal(train.indices, data.build(cfg, 0)[0].indices)
    assert not np.array_equal(train.indices, data.build(cfg, 1)[0].indices)
    assert len(set(train.indices)) == 100
    assert data.labels(train).tolist() == [int(label) for _, label in train]


def test_unknown_data_and_wrong_number_of_classes_are_refused(config):
    with pytest.raises(UserError, match=r"data=mnist is unknown.*digits"):
        data.build(config("data.name=mnist").data, 0)
    with pytest.raises(UserError, match=r"data.num_classes=11 .*10 classes"):
        data.build(config("data.num_classes=11").data, 0)


@pytest.mark.parametrize("num_clients", [1, 2, 3, 7, 32])
def test_iid_parts_are_even_disjoint_and_complete(num_clients, digits, config):
    train = digits[0]
    parts = data.partition(train, num_clients, config().partition, 0)
    assert sorted(np.concatenate(parts)) == list(range(len(train)))
    sizes = [len(part) for part in parts]
    assert len(sizes) == num_clients and max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("num_clients", [1, 2, 7])
@pytest.mark.parametrize("alpha", [0.3, 1.0, 100.0])
def test_dirichlet_parts_are_disjoint_complete_and_not_empty(num_clients, alpha, digits, config):
    train = digits[0]
    cfg = config("partition=dirichlet", f"partition.alpha={alpha}").partition
    parts = data.partition(train, num_clients, cfg, 0)
    assert sorted(np.concatenate(parts)) == list(range(len(train)))
    assert len(parts) == num_clients and all(part.size for part in parts)


def test_smaller_alpha_makes_clients_less_alike(digits, config):
    train = digits[0]

    def skew(alpha):
        """Mean over clients and seeds of the share of a client's commonest class."""
        cfg = config("partition=dirichlet", f"partition.alpha={alpha}").partition
        parts = [part for seed in range(5) for part in data.partition(train, 5, cfg, seed)]
        return np.mean([np.bincount(data.labels(train)[part]).max() / len(part) for part in parts])

    skews = [skew(alpha) for alpha in (0.1, 1.0, 100.0)]
    assert skews[0] > skews[1] + 0.1 > skews[2] + 0.2


@pytest.mark.parametrize("name", ["iid", "dirichlet"])
def test_partition_repeats_with_the_seed(name, digits, config):
    cfg = config(f"partition={name}").partition
    first, again, other = (data.partition(digits[0], 3, cfg, seed) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("alpha", [0, -1])
def test_alpha_must_be_above_zero(alpha, config):
    with pytest.raises(UserError, match=f"partition.alpha={alpha}"):
        data.partition(numbered(20), 2, config("partition=dirichlet", f"partition.alpha={alpha}").partition, 0)


def test_alpha_that_leaves_a_client_without_samples_is_refused(config):
    cfg = config("partition=dirichlet", "partition.alpha=0.001").partition
    with pytest.raises(UserError, match=r"partition.alpha=0.001 leaves some of 20 clients"):
        data.partition(numbered(20), 20, cfg, 0)


@pytest.mark.parametrize("name", ["iid", "dirichlet"])
def test_more_clients_than_samples_are_refused(name, config):
    with pytest.raises(UserError, match=r"4 samples .* num_clients=5"):
        data.partition(numbered(4), 5, config(f"partition={name}").partition, 0)


@pytest.mark.parametrize("num_clients", [1, 3])
def test_loaders_give_all_samples_once_an_epoch(num_clients, config):
    cfg = config("batch_size=8")
    all_seen = [[], []]
    for client in range(num_clients):
        for loader, found in zip(
            data.loaders(numbered(101), numbered(34), client, num_clients, cfg), all_seen, strict=True
        ):
            batches = seen(loader)
            assert {len(batch) for batch in batches[:-1]} <= {8} and 1 <= len(batches[-1]) <= 8
            assert len(batches) == len(loader)
            for batch in batches:
                found += batch
    assert sorted(all_seen[0]) == list(range(101))
    assert sorted(all_seen[1]) == list(range(34))


def test_order_repeats_with_the_seed_and_differs_between_epochs(config):
    def epochs(*overrides):
        train, test = data.loaders(numbered(60), numbered(9), 0, 2, config(*overrides))
        return [seen(train, epoch) for epoch in (1, 2, 3)], [seen(test, epoch) for epoch in (1, 2)]

    (first, second, third), tests = epochs()
    assert epochs() == ([first, second, third], tests)
    assert first != second != third
    assert tests == [[[0, 2, 4, 6, 8]]] * 2
    assert epochs("seed=1")[0][0] != first


def test_an_epoch_goes_on_from_any_batch(config):
    train, _ = data.loaders(numbered(60), numbered(9), 1, 2, config("batch_size=8"))
    for batch in range(5):
        assert seen(train, 3, batch) == seen(train, 3)[batch:]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_augmentation_depends_on_seed_epoch_and_place_alone(num_workers, folder, config):
    cfg = config("data=image_folder", f"data.root={folder('a', 'b')}", "data.image_size=16", "batch_size=3")
    train, test, _ = data.build(cfg.data, 0)

    def images(num_workers, epoch, batch):
        cfg.data.num_workers = num_workers
        loader, _ = data.loaders(train, test, 0, 1, cfg)
        loader.batch_sampler.start_at(epoch, batch)
        return torch.cat([images for images, _ in loader])

    torch.rand(1)  # the global generator does not matter
    assert torch.equal(images(num_workers, 2, 1), images(0, 2, 0)[3:])
    assert not torch.equal(images(num_workers, 2, 0), images(num_workers, 3, 0))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_image_that_cannot_be_read_is_named(num_workers, folder, config):
    root = folder("a", "b")
    broken = sorted(root.rglob("*.png"))[0]
    broken.write_bytes(b"not an image")
    cfg = config("data=image_folder", f"data.root={root}", "data.image_size=16", f"data.num_workers={num_workers}")
    train, test, _ = data.build(cfg.data, 0)
    with pytest.raises(UserError, match=rf"^sample \S*{broken.name} cannot be read .*take it out of data.root$"):
        for loader in data.loaders(train, test, 0, 1, cfg):
            list(loader)


def test_an_image_that_says_it_is_huge_is_named(folder, config):
    root = folder("a", "b")
    for broken in sorted(root.rglob("*.png")):
        Image.new("RGB", (4, 4)).save(broken, "BMP")
        content = bytearray(broken.read_bytes())
        content[18:26] = (60_000).to_bytes(4, "little") * 2  # width and height
        broken.write_bytes(content)
    train, test, _ = data.build(image_folder(config, root), 0)
    with pytest.raises(UserError, match=r"^sample \S*\.png cannot be read .*decompression bomb.*take it out"):
        list(data.loaders(train, test, 0, 1, config("data=image_folder"))[0])


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
            data.build(cfg, 0)


def test_loading_leaves_the_global_generator_alone(config):
    before = torch.get_rng_state()
    for loader in data.loaders(numbered(60), numbered(9), 1, 2, config()):
        seen(loader)
    assert torch.equal(torch.get_rng_state(), before)


def image_folder(config, root, *overrides):
    return config("data=image_folder", f"data.root={root}", "data.image_size=16", *overrides).data


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_image_folder_with_its_own_test_images(held_out, folder, config):
    root = folder("train/a", "train/b", "train/c", f"{held_out}/a", f"{held_out}/b", f"{held_out}/c")
    train, test, num_classes = data.build(image_folder(config, root), 0)
    assert (len(train), len(test), num_classes) == (15, 15, 3)
    assert train[0][0].shape == test[0][0].shape == (3, 16, 16)
    assert data.labels(train).tolist() == [0] * 5 + [1] * 5 + [2] * 5


@pytest.mark.parametrize("inner", ["", "train/"])
@pytest.mark.parametrize("fraction, num_test", [(0.2, 2), (0.5, 5), (0.001, 1)])
def test_image_folder_without_holds_out_a_part(inner, fraction, num_test, folder, config):
    root = folder(f"{inner}a", f"{inner}b")
    cfg = image_folder(config, root, f"data.test_fraction={fraction}")
    train, test, num_classes = data.build(cfg, 0)
    assert (len(test), num_classes) == (num_test, 2)
    assert sorted([*train.indices, *test.indices]) == list(range(10))
    assert np.array_equal(data.build(cfg, 0)[1].indices, test.indices)
    assert data.labels(test).tolist() == [label for _, label in test]


def test_held_out_images_are_not_augmented(folder, config):
    cfg = image_folder(config, folder("a", "b"), "data.test_fraction=0.5")
    train, test, _ = data.build(cfg, 0)
    assert isinstance(test, Subset) and torch.equal(test[0][0], test[0][0])
    # Padding of the random crop makes a one-grey image more than one grey.
    assert all(image.flatten(1).unique(dim=1).shape[1] == 1 for image, _ in test)
    assert any(train[-1][0].flatten(1).unique(dim=1).shape[1] > 1 for _ in range(30))


@pytest.mark.parametrize("augment", ["none", "crop_flip", "resized_crop"])
def test_images_have_the_asked_size_and_scale(augment, folder, config):
    root = folder("train/a", "test/a")
    for part in data.build(image_folder(config, root, f"data.augment={augment}"), 0)[:2]:
        image, label = part[3]
        assert image.shape == (3, 16, 16) and image.dtype == torch.float32 and label == 0
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(image[:, 8, 8], (23 / 255 - mean) / std)


def test_different_classes_for_training_and_test_are_refused(folder, config):
    with pytest.raises(UserError, match=r"data.root=.*train/ and test/ have different classes"):
        data.build(image_folder(config, folder("train/a", "train/b", "test/a")), 0)


@pytest.mark.parametrize("name", ["image_folder", "imagenet", "cifar10", "cifar100"])
def test_missing_folder_names_the_key(name, tmp_path, config):
    with pytest.raises(UserError, match=r"data\.root=.*nowhere does not exist"):
        data.build(config(f"data={name}", f"data.root={tmp_path}/nowhere").data, 0)
    with pytest.raises(UserError, match=r"data\.root"):
        data.build(config(f"data={name}", f"data.root={tmp_path}").data, 0)  # empty


def test_folder_that_is_not_given_names_the_key(config):
    with pytest.raises(UserError, match=r"set data\.root="):
        data.build(config("data=image_folder").data, 0)


def test_batch_goes_to_the_device():
    images, targets = data.to_device([torch.zeros(2, 3), torch.ones(2)], torch.device("meta"))
    assert images.device.type == targets.device.type == "meta"
