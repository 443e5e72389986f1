from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from samples import image_folder, numbered
from torchvision.transforms import v2

from splitlearn.errors import UserError
from splitlearn.tasks import samples
from splitlearn.tasks.image_classification import sources
from splitlearn.tasks.loading import EpochBatches, client_data, loader_of, loaders, of_server, source


def seen(loader, epoch=1, batch=0):
    """The batches of one epoch of a loader over `numbered`, from one on, as lists of numbers."""
    loader.batch_sampler.start_at(epoch, batch)
    return [images[:, 0, 0, 0].long().tolist() for images, _ in loader]


@pytest.mark.parametrize("num_clients", [1, 3])
def test_loaders_give_all_samples_once_an_epoch(num_clients, config):
    cfg = config("batch_size=8")
    all_seen = [[], []]
    for client in range(num_clients):
        for loader, found in zip(loaders(numbered(101), numbered(34), client, num_clients, cfg), all_seen, strict=True):
            batches = seen(loader)
            assert {len(batch) for batch in batches[:-1]} <= {8} and 1 <= len(batches[-1]) <= 8
            assert len(batches) == len(loader)
            for batch in batches:
                found += batch
    assert sorted(all_seen[0]) == list(range(101))
    assert sorted(all_seen[1]) == list(range(34))


def test_no_samples_are_no_batches(config):
    _, test = loaders(numbered(9), numbered(2), 2, 3, config())
    assert len(test) == 0 == len(list(test))


def test_order_repeats_with_the_seed_and_differs_between_epochs(config):
    def epochs(*overrides):
        train, test = loaders(numbered(60), numbered(9), 0, 2, config(*overrides))
        return [seen(train, epoch) for epoch in (1, 2, 3)], [seen(test, epoch) for epoch in (1, 2)]

    (first, second, third), tests = epochs()
    assert epochs() == ([first, second, third], tests)
    assert first != second != third
    assert tests == [[[0, 2, 4, 6, 8]]] * 2
    assert epochs("seed=1")[0][0] != first


def test_an_epoch_goes_on_from_any_batch(config):
    train, _ = loaders(numbered(60), numbered(9), 1, 2, config("batch_size=8"))
    for batch in range(5):
        assert seen(train, 3, batch) == seen(train, 3)[batch:]


@pytest.mark.parametrize("keep_in_memory, num_workers", [(False, 0), (False, 2), (True, 0), ("auto", 2)])
def test_augmentation_depends_on_seed_epoch_and_place_alone(keep_in_memory, num_workers, folder, config):
    cfg = config("data=image_folder", f"data.root={folder('a', 'b')}", "data.image_size=16", "batch_size=3")
    train, test, _ = sources.build(cfg.data, 0)

    def images(keep_in_memory, num_workers, epoch, batch):
        cfg.data.keep_in_memory, cfg.data.num_workers = keep_in_memory, num_workers
        loader, _ = loaders(train, test, 0, 1, cfg)
        loader.batch_sampler.start_at(epoch, batch)
        return torch.cat([images for images, _ in loader])

    torch.rand(1)  # the global generator does not matter
    assert torch.equal(images(keep_in_memory, num_workers, 2, 1), images(False, 0, 2, 0)[3:])
    assert not torch.equal(images(keep_in_memory, num_workers, 2, 0), images(False, 0, 3, 0))


@pytest.mark.parametrize("keep_in_memory", [False, True])
def test_images_without_augmentation_are_each_scaled_and_normalised(keep_in_memory, folder, config):
    options = ["data.image_size=7", "data.augment=none", f"data.keep_in_memory={keep_in_memory}", "batch_size=4"]
    root, generator = folder("a", "b"), np.random.default_rng(0)
    cfg = config("data=image_folder", f"data.root={root}", *options)
    for path in root.rglob("*.png"):
        Image.fromarray(generator.integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(path)
    train, test, _ = sources.build(cfg.data, 0)
    one_by_one = v2.Compose(
        [
            v2.ToImage(),
            v2.Resize((7, 7), antialias=True),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(cfg.data.mean), list(cfg.data.std)),
        ]
    )
    for loader in loaders(train, test, 0, 1, cfg):
        own, seen = loader.dataset, []
        loader.batch_sampler.start_at(1)
        for keys, (images, labels) in zip(loader.batch_sampler, loader, strict=True):
            for (_, index), image, label in zip(keys, images, labels, strict=True):
                path, expected = train.dataset.wrapped.samples[own.dataset.indices[own.indices[index]]]
                assert torch.equal(image, one_by_one(Image.open(path))) and label == expected
                seen.append(path)
        assert len(seen) == len(set(seen)) == len(own)


def test_samples_in_memory_are_read_once_at_the_start(folder, config, monkeypatch):
    root = folder("train/a", "train/b", "test/a", "test/b")
    cfg = config("data=image_folder", f"data.root={root}", "data.image_size=16", "batch_size=3")
    per_image = 3 * 16 * 16

    def is_kept(wish, limit, *options):
        monkeypatch.setattr(samples, "AUTO_NBYTES", limit)
        own = config("data=image_folder", f"data.root={root}", "data.image_size=16", "batch_size=3", *options)
        own.data.keep_in_memory = wish
        train, test, _ = sources.build(own.data, 0)
        return [loader.dataset.kept is not None for loader in loaders(train, test, 0, 2, own)]

    assert is_kept("auto", 5 * per_image) == [True, True]  # this client's 5 of 10
    assert is_kept("auto", 5 * per_image - 1) == [False, False]
    assert is_kept(True, 0) == [True, True] and is_kept(False, 1 << 30) == [False, False]
    assert is_kept("auto", 1 << 30, "data.augment=resized_crop") == [False, True]  # which cuts each image anew
    assert is_kept(True, 1 << 30, "data.transform=[torchvision.transforms.v2.RGB]", "data.mean=null") == [False, True]

    train, test, _ = sources.build(cfg.data, 0)
    loader, _ = loaders(train, test, 1, 2, cfg)
    kept, labels = loader.dataset.kept
    assert kept.shape == (5, 3, 16, 16) and kept.dtype == torch.uint8 and labels.dtype == torch.int64
    for path in root.rglob("*.png"):
        path.unlink()
    assert sum(len(images) for images, _ in loader) == 5


def test_it_tells_how_far_it_is(folder, config, monkeypatch, capsys):
    monkeypatch.setattr(samples, "AT_ONCE", 2)
    monkeypatch.setattr(samples, "TELL_EVERY_S", 0)
    cfg = config("data=image_folder", f"data.root={folder('train/a', 'test/a')}", "data.image_size=16")
    train, test, _ = sources.build(cfg.data, 0)
    loaders(train, test, 1, 2, cfg)
    assert capsys.readouterr().out == ""  # the first client does
    loaders(train, test, 0, 2, cfg)
    assert "2 of 3 samples are in memory" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options", [["data.num_workers=1"], ["data.keep_in_memory=false"], ["data.keep_in_memory=true"]]
)
def test_an_image_that_cannot_be_read_is_named(options, folder, config):
    root = folder("a", "b")
    broken = sorted(root.rglob("*.png"))[0]
    broken.write_bytes(b"not an image")
    cfg = config("data=image_folder", f"data.root={root}", "data.image_size=16", *options)
    train, test, _ = sources.build(cfg.data, 0)
    with pytest.raises(
        UserError,
        match=rf"^sample \S*{broken.name} cannot be read .*take it out of data.root, or .*data.skip_unreadable=true$",
    ):
        for loader in loaders(train, test, 0, 1, cfg):
            list(loader)


def test_an_image_that_says_it_is_huge_is_named(folder, config):
    root = folder("a", "b")
    for broken in sorted(root.rglob("*.png")):
        Image.new("RGB", (4, 4)).save(broken, "BMP")
        content = bytearray(broken.read_bytes())
        content[18:26] = (60_000).to_bytes(4, "little") * 2  # width and height
        broken.write_bytes(content)
    train, test, _ = sources.build(image_folder(config, root), 0)
    with pytest.raises(UserError, match=r"^sample \S*\.png cannot be read .*decompression bomb.*take it out"):
        list(loaders(train, test, 0, 1, config("data=image_folder"))[0])


def test_loading_leaves_the_global_generator_alone(config):
    before = torch.get_rng_state()
    for loader in loaders(numbered(60), numbered(9), 1, 2, config()):
        seen(loader)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("partition, keep_in_memory", [("none", False), ("iid", False), ("iid", True)])
def test_what_cannot_be_read_is_left_out_and_counted(partition, keep_in_memory, num_workers, folder, config, capsys):
    root = folder("train/a", "train/b", "test/a", "test/b")
    broken = [root / "train" / "a" / "3.png", root / "train" / "b" / "0.png", root / "test" / "b" / "1.png"]
    for path in broken:
        path.write_bytes(path.read_bytes()[:40])
    options = ["data.skip_unreadable=true", f"partition={partition}", f"data.num_workers={num_workers}", "batch_size=4"]
    options.append(f"data.keep_in_memory={keep_in_memory}")
    cfg = config("data=image_folder", f"data.root={root}", "data.image_size=16", *options)
    train, test, _ = sources.build(cfg.data, 0)
    num_clients = 1 if partition == "none" else 2
    clients = [client_data(train, test, {}, client, num_clients, cfg) for client in range(num_clients)]
    assert sum(data.num_train for data in clients) == 8 and sum(data.num_test for data in clients) == 9
    assert sum(data.origin.unreadable_train for data in clients) == 2
    assert sum(data.origin.unreadable_test for data in clients) == 1
    for data in clients:
        assert sum(len(labels) for _, labels in data.train) == data.num_train
        assert sum(len(labels) for _, labels in data.test) == data.num_test
    out = capsys.readouterr().out
    assert "samples that cannot be read: " in out and all(str(path) in out for path in broken)


def test_a_client_of_which_nothing_can_be_read_is_one_sentence(folder, config):
    root = folder("train/a", "test/a")
    for path in (root / "train").rglob("*.png"):
        path.write_bytes(b"")
    cfg = config("data=image_folder", f"data.root={root}", "data.skip_unreadable=true")
    train, test, _ = sources.build(cfg.data, 0)
    with pytest.raises(UserError, match=r"^client 0 has no training sample that can be read: look at data.root="):
        client_data(train, test, {}, 0, 1, cfg)


@pytest.mark.parametrize(
    "options, words",
    [
        (["data=custom", "data._target_=my.Data", "data.root=/photos"], "data._target_=my.Data"),
        (["data=image_folder", "data.root=/photos"], "data.root=/photos"),
        (["data=digits"], "data=digits"),
        (["task=causal_lm", "data=shakespeare"], "data=shakespeare"),
    ],
)
def test_where_samples_come_from_is_said_by_the_key_that_says_so(options, words, config):
    assert source(config(*options).data) == words


def test_a_server_has_test_samples_of_whatever_task(config):
    cfg, none = config("evaluate.on=server"), SimpleNamespace(load_test=lambda cfg: SimpleNamespace(num_test=0))
    with pytest.raises(
        UserError, match=r"^evaluate.on=server: .* data=digits \(SimpleNamespace.load_test\): give it some"
    ):
        of_server(none, cfg)


def test_without_training_samples_it_is_one_sentence(folder, config):
    cfg = config("data=image_folder", f"data.root={folder('test/a')}")
    train, test, _ = sources.build(cfg.data, 0)
    with pytest.raises(UserError, match=r"^data.root=\S+ holds no training samples: client 3 needs some"):
        client_data(train, test, {}, 3, 8, cfg)


def test_epochs_of_fewer_samples_go_on_with_the_others(config):
    cfg = config("batch_size=4", "samples_per_epoch=10")
    loader = loader_of(numbered(24), np.arange(24), 0, cfg, shuffle=True)
    assert [len(batch) for batch in loader.batch_sampler] == [4, 4, 2] and len(loader) == 3
    seen = []
    for epoch in range(1, 13):
        loader.batch_sampler.start_at(epoch)
        seen += [index for batch in loader.batch_sampler for _, index in batch]
    for start in range(0, 120, 24):  # each pass has all of them
        assert sorted(seen[start : start + 24]) == list(range(24))
    loader.batch_sampler.start_at(3, 1)
    assert [[index for _, index in batch] for batch in loader.batch_sampler] == [seen[24:28], seen[28:30]]
    whole = loader_of(numbered(24), np.arange(24), 0, config("samples_per_epoch=99"), shuffle=True)
    whole.batch_sampler.start_at(2)
    assert [index for batch in whole.batch_sampler for _, index in batch] == seen[24:48]


@pytest.mark.parametrize(
    ("in_epoch", "last_batch"), [(None, "keep"), (None, "merge"), (None, "drop"), (13, "keep"), (13, "drop")]
)
def test_a_batch_says_which_samples_are_in_it(in_epoch, last_batch):
    sampler = EpochBatches(34, 4, 5, 1, last_batch=last_batch, in_epoch=in_epoch)
    for epoch in (1, 2, 3, 7):
        sampler.start_at(epoch)
        batches = [[index for _, index in keys] for keys in sampler]
        sampler.start_at(epoch, 2)  # as a run that goes on
        assert [sampler.samples_of(number).tolist() for number in range(1, len(batches) + 1)] == batches
