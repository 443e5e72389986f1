"""Which data set a client's samples are of, and whether those of several clients go together."""

import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from samples import image_folder, numbered
from torch.utils.data import Subset, TensorDataset

from splitlearn.seeds import drawing_from
from splitlearn.tasks.image_classification import sources
from splitlearn.tasks.loading import client_data
from splitlearn.tasks.origin import Origin, disagreement, fingerprint, same_data
from splitlearn.tasks.partition import sharing


@pytest.mark.parametrize(
    "overrides, expected",
    [
        ([], "iid"),
        (["data=image_folder"], "iid"),
        (["role=client"], "iid"),
        (["role=client", "data=cifar10"], "iid"),
        (["role=client", "data=imagenet"], "iid"),
        (["role=client", "data=image_folder"], "none"),
        (["role=server", "data=image_folder"], "none"),
        (["role=client", "data=custom", "data._target_=a.B"], "none"),
        (["role=client", "data._target_=a.B"], "none"),
        (["role=client", "data=image_folder", "partition=iid"], "iid"),
        (["data=image_folder", "partition=none"], "none"),
        (["role=client", "data=image_folder", "partition=dirichlet"], "dirichlet"),
    ],
)
def test_auto_is_none_for_a_users_own_data_where_each_client_is_started_on_its_own(overrides, expected, config):
    assert sharing(config(*overrides)) == expected


def test_with_none_all_samples_are_the_clients_own(config):
    cfg = config("partition=none", "batch_size=4")
    clients = [client_data(numbered(10 * n), numbered(n), {}, n - 1, 2, cfg) for n in (1, 2)]
    assert [(data.num_train, data.num_test, data.origin.is_own) for data in clients] == [(10, 1, True), (20, 2, True)]
    seen = [images[:, 0, 0, 0] for images, _ in clients[1].train]
    assert torch.cat(seen).sort().values.tolist() == list(range(20))
    shared = client_data(numbered(10), numbered(4), {}, 1, 2, config("batch_size=4"))
    assert (shared.num_train, shared.num_test, shared.origin.num_train, shared.origin.num_test) == (5, 2, 10, 4)


def test_where_the_server_has_the_test_samples_clients_have_none(config):
    data = client_data(numbered(10), numbered(4), {}, 1, 2, config("evaluate.on=server"))
    assert data.num_test == 0 == len(data.test) and data.origin.test == ""


# Fingerprints


def with_labels(labels, images=None):
    images = torch.zeros(len(labels), 3, 2, 2, dtype=torch.uint8) if images is None else images
    return TensorDataset(images, torch.as_tensor(labels))


def test_a_fingerprint_is_the_same_for_the_same_and_another_for_other_samples():
    first = fingerprint(numbered(100))
    assert fingerprint(numbered(100)) == first and len(first) == 32
    others = [numbered(99), numbered(100, 5), Subset(numbered(101), range(1, 101))]
    assert len({first, *map(fingerprint, others)}) == 4
    assert fingerprint(numbered(0)) == ""
    assert fingerprint(with_labels([0, 1, 0])) != fingerprint(with_labels([0, 0, 1]))
    bright = torch.full((3, 3, 2, 2), 200, dtype=torch.uint8)
    assert fingerprint(with_labels([0, 1, 0])) != fingerprint(with_labels([0, 1, 0], bright))


def test_a_fingerprint_does_not_depend_on_the_last_bits_of_a_float():
    dataset = numbered(100)
    images, labels = dataset.tensors
    assert fingerprint(TensorDataset(images / 7, labels)) == fingerprint(TensorDataset(images / 7 * (1 + 1e-7), labels))


def test_folders_are_told_apart_by_names_and_sizes_wherever_they_are(folder, tmp_path, config):
    root = folder("train/a", "train/b", "test/a")

    def of(where):
        return fingerprint(sources.build(image_folder(config, where), 0)[0])

    first = of(root)
    copied = tmp_path / "copy"
    shutil.copytree(root / "train", copied / "train")
    shutil.copytree(root / "test", copied / "test")
    assert of(copied) == first
    (copied / "train" / "a" / "0.png").rename(copied / "train" / "a" / "00.png")
    renamed = of(copied)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 12, 3), dtype=np.uint8)).save(
        copied / "train" / "a" / "00.png"
    )
    assert len({first, renamed, of(copied)}) == 3


class Drawn(TensorDataset):
    """Augments as it is asked for a sample."""

    def __getitem__(self, index):
        return self.tensors[0][index] + torch.rand(()), int(self.tensors[1][index])


def test_what_is_drawn_anew_each_time_is_not_looked_at_and_draws_from_no_other():
    dataset = Drawn(*numbered(50).tensors)
    before = torch.get_rng_state()
    prints = set()
    for seed in range(3):
        with drawing_from(seed):
            prints.add(fingerprint(dataset))
    assert len(prints) == 1 and torch.equal(torch.get_rng_state(), before)


class Broken(TensorDataset):
    def __getitem__(self, index):
        raise KeyError(index)


def test_a_sample_that_cannot_be_loaded_does_not_end_it():
    assert fingerprint(Broken(*numbered(50).tensors)) != fingerprint(Broken(*numbered(49).tensors))


# Several clients


def origin(partition="iid", train="a", test="b"):
    return Origin(partition, 10, 4, train, test)


@pytest.mark.parametrize(
    "chosen, one, other, words",
    [
        ("auto", origin(), origin(), None),
        ("iid", origin(), origin(), None),
        ("auto", origin(), origin(train="c"), "client 1's data are not client 0's: partition=iid shares one"),
        ("dirichlet", origin("dirichlet"), origin("dirichlet", test="c"), "client 1's test data are not client 0's"),
        ("auto", origin("none"), origin("none", train="c", test="c"), None),
        ("auto", origin("none"), origin("none", train="c"), None),
        ("auto", origin("none"), origin("none"), "same training samples as client 0.*partition=iid.*partition=none"),
        ("none", origin("none"), origin("none"), None),
        ("auto", origin("none"), origin(), "client 1 has partition=iid, client 0 partition=none, which partition=auto"),
    ],
)
def test_which_go_together(chosen, one, other, words):
    found = disagreement(1, other, {0: one}, chosen)
    assert found is None if words is None else re.search(words, found)


def test_clients_with_the_same_data_are_told_of():
    assert same_data({0: origin(), 1: origin()}) is None
    assert same_data({0: origin("none"), 1: origin("none", "c", "d")}) is None
    assert same_data({0: origin("none", test=""), 1: origin("none", "c", "")}) is None
    note = same_data({0: origin("none"), 1: origin("none", "c"), 2: origin("none", "d")})
    assert note == "clients 0 and 1 have the same test samples (partition=none)"
    assert "clients 1 and 2 have the same training" in same_data(
        {0: origin("none"), 1: origin("none", "c"), 2: origin("none", "c")}
    )
