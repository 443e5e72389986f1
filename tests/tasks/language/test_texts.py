"""Texts as tokens in windows, and how clients share them."""

import builtins
import json
import math

import numpy as np
import pytest
import torch

from splitlearn.errors import UserError
from splitlearn.tasks import task_from
from splitlearn.tasks.language import texts
from splitlearn.tasks.language.texts import Windows
from splitlearn.tasks.language.tokens import Bytes, tokenizer_from
from splitlearn.tasks.partition import partition

SMALL = ["task=causal_lm", "task.context=7"]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "texts" / "more").mkdir(parents=True)
    (tmp_path / "texts" / "a.txt").write_text("abcdefgh" * 10)
    (tmp_path / "texts" / "more" / "b.txt").write_bytes(bytes(range(256)))
    (tmp_path / "texts" / ".hidden").write_text("nothing")
    return tmp_path / "texts"


def load(config, *overrides, client=0, num_clients=1):
    cfg = config(*SMALL, *overrides)
    return task_from(cfg).load(cfg, client, num_clients)


def of_text(config, *overrides):
    cfg = config(*SMALL, "data=text", *overrides)
    return texts.build(cfg.data, tokenizer_from(cfg.data.tokenizer), cfg.task.context)


def test_a_megabyte_of_plays_is_embedded_and_some_are_held_out():
    train, test = texts.plays()
    assert len(train) == 7 and test.keys() == {"comedy_of_errors", "macbeth"}
    assert 1e6 < sum(map(len, [*train.values(), *test.values()])) < 1.1e6
    for name, text in (train | test).items():
        assert text.isascii() and len(text) > 80_000, name
    assert train["romeo_and_juliet"].startswith(b"ROMEO AND JULIET") and b"Is this a dagger" in test["macbeth"]


def test_windows_have_every_token_once_and_targets_are_the_next_ones():
    windows = Windows([np.arange(10), np.arange(10, 25)], 4)
    assert len(windows) == 5 and windows.data.flatten().tolist() == list(range(25))
    assert windows.targets.tolist() == [0, 0, 1, 1, 1]
    inputs, targets = windows[1]
    assert inputs.tolist() == [5, 6, 7, 8] and targets.tolist() == [6, 7, 8, 9]
    assert inputs.dtype == targets.dtype == torch.int64
    assert len(Windows([np.arange(24)], 4)) == 4  # a last one that is not whole is dropped
    assert len(Windows([], 4)) == 0


def test_clients_share_the_plays(config):
    parts = [
        load(
            config,
            "data.max_train_samples=101",
            "batch_size=16",
            "samples_per_epoch=null",
            client=client,
            num_clients=2,
        )
        for client in (0, 1)
    ]
    assert [part.num_train for part in parts] == [51, 50] and parts[0].origin == parts[1].origin
    about = {"vocab_size": 256, "tokenizer": "bytes", "context": 7, "bytes_per_token": 1.0}
    assert [part.about for part in parts] == [about | {"test_tokens": 7 * part.num_test} for part in parts]
    task = task_from(config(*SMALL))
    inputs, targets = next(iter(parts[0].train))
    assert inputs.shape == targets.shape == (16, 7) and torch.equal(inputs[:, 1:], targets[:, :-1])
    assert task.units(16) == 16 * 7 and task.unit == "tokens"


def test_a_natural_part_is_of_whole_plays(config):
    windows = Windows([np.full(number, number) for number in (40, 50, 60, 70, 80)], 9)
    parts = partition(windows, 3, config("partition=natural").partition, 0)
    found = [set(windows.targets[part]) for part in parts]
    assert sorted(np.concatenate(parts)) == list(range(len(windows))) and sum(map(len, found)) == 5
    others = partition(windows, 3, config("partition=natural").partition, 1)
    assert found != [set(windows.targets[part]) for part in others]
    with pytest.raises(UserError, match="partition=natural has 5 classes or texts for num_clients=6: lower"):
        partition(windows, 6, config("partition=natural").partition, 0)


def test_any_folder_is_a_text(folder, config):
    found = of_text(config, f"data.root={folder}", "data.test_fraction=0.25")
    assert bytes(found.train.data[0].tolist()) == b"abcdefgh"
    assert len(found.train) == (60 + 192) // 8 and len(found.test) == (20 + 64) // 8
    assert 250 in found.test.data and 250 not in found.train.data  # the end of each file is held out
    assert (found.test.num_bytes == 7).all() and found.train.num_bytes is None


def test_a_file_and_held_out_files(folder, config):
    found = of_text(config, f"data.root={folder}/a.txt", f"data.test_root={folder}/more")
    assert len(found.train) == 10 and len(found.test) == 32
    assert len(of_text(config, f"data.root={folder}/a.txt", "data.test_fraction=0").test) == 0


@pytest.mark.parametrize(
    "overrides, expected",
    [
        ([], "data=text needs a file or a folder of texts: set data.root=<file or folder>"),
        (["data.root=nowhere"], "data.root=nowhere does not exist"),
        (["data.root={}/a.txt", "data.test_root=nowhere"], "data.test_root=nowhere does not exist"),
        (["data.root={}/empty"], "data.root=.*empty holds no files"),
        (["data.root={}/short.txt"], "data=text has 4 training tokens, and a window needs 8: give more text, or lower"),
        (["data.root={}/a.txt", "data.test_fraction=0.05"], "has 4 held-out tokens.*, or raise data.test_fraction"),
        (["data.root={}", "data.tokenizer={}/nothing"], "data.tokenizer=.*nothing cannot be loaded .*No such file"),
        (["data.root={}", "data.tokenizer={}/a.txt"], "data.tokenizer=.*a.txt cannot be loaded .*set it to bytes, or"),
    ],
)
def test_what_is_wrong_with_a_text_is_one_sentence(overrides, expected, folder, config):
    (folder / "empty").mkdir()
    (folder / "short.txt").write_text("abcd")
    with pytest.raises(UserError, match=expected) as caught:
        of_text(config, *(word.format(folder) for word in overrides))
    assert "\n" not in str(caught.value)


@pytest.fixture
def tokenizer(tmp_path):
    """A folder with one of words."""
    pytest.importorskip("tokenizers")
    model = {"type": "WordLevel", "vocab": {"?": 0, "to": 1, "be": 2, "or": 3, "not": 4}, "unk_token": "?"}
    splits = {"type": "Whitespace"}
    text = {"version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": splits, "post_processor": None}
    path = tmp_path / "tokenizer"
    path.mkdir()
    (path / "tokenizer.json").write_text(json.dumps({**text, "decoder": None, "model": model}))
    return path


def test_a_trained_tokenizer(tokenizer, tmp_path, config):
    (tmp_path / "hamlet.txt").write_text("to be or not to be " * 8)
    overrides = "data=text", f"data.root={tmp_path}/hamlet.txt", f"data.tokenizer={tokenizer}"
    data = load(config, *overrides, "data.test_fraction=0.5")
    assert data.about["vocab_size"] == 5 and len(data.about["tokenizer"]) == 32
    targets = " be or not to be to be", " not to be to be or not", " be to be or not to be "
    assert data.about["bytes_per_token"] == sum(map(len, targets)) / 21 and data.about["test_tokens"] == 21
    inputs, targets = next(iter(data.test))
    assert inputs[0].tolist() == [1, 2, 3, 4, 1, 2, 1] and targets[0].tolist() == [2, 3, 4, 1, 2, 1, 2]
    task = task_from(cfg := config(*SMALL, *overrides))
    assert task.default_about(cfg)["vocab_size"] == 5
    task.know(data.about)
    outputs = torch.zeros(2, 7, 5)
    sums = task.score(outputs, torch.zeros(2, 7, dtype=torch.long), ["bits_per_byte"])
    assert sums["bits_per_byte"] == pytest.approx(2 * math.log2(5) / data.about["bytes_per_token"])
    (tmp_path / "hamlet.txt").write_bytes(b"to be \xff\xfe")
    with pytest.raises(UserError, match=r"hamlet.txt is no UTF-8 text \(invalid start byte at byte 6\), which"):
        load(config, *overrides)


@pytest.fixture
def pieces(tmp_path):
    """A folder with one of pieces of words, some of which are parts of a letter."""
    tokenizers = pytest.importorskip("tokenizers")
    made, level = tokenizers.Tokenizer(tokenizers.models.BPE()), tokenizers.pre_tokenizers.ByteLevel
    made.pre_tokenizer, made.decoder = level(add_prefix_space=False), tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=280, initial_alphabet=level.alphabet(), show_progress=False)
    made.train_from_iterator(["to be or not to be, Zwölf Boxkämpfer"] * 5, trainer)
    made.enable_truncation(4)
    made.enable_padding(length=9)
    (tmp_path / "pieces").mkdir()
    made.save(str(tmp_path / "pieces" / "tokenizer.json"))
    return tmp_path / "pieces"


@pytest.mark.parametrize("share", [0, 0.3, 1])
@pytest.mark.parametrize("text", ["to be or not, ", "Zwölf 😀🙈 Boxkämpfer  ", "", "ä"])
def test_the_bytes_of_all_tokens_are_those_of_the_text(text, share, pieces):
    for one in (tokenizer_from(str(pieces)), Bytes()):
        tokens, sizes = one.encode_sized(text.encode(), share)
        _, whole = one.encode_sized(text.encode(), 1)
        assert one.decode(tokens.tolist()) == text and np.array_equal(tokens, one.encode(text.encode()))
        assert len(sizes) == round(share * len(tokens)) and whole.sum() == len(text.encode())
        assert np.array_equal(sizes, whole[len(whole) - len(sizes) :])


@pytest.mark.parametrize("clients", [1, 2, 3])
def test_bits_per_byte_are_over_the_bytes_that_are_tested(clients, pieces, tmp_path, config):
    (tmp_path / "train.txt").write_text("to be or not to be " * 20)
    (tmp_path / "test.txt").write_text("xyz" * 16)  # each letter a token, where "to be" is one
    overrides = ["data=text", f"data.root={tmp_path}/train.txt", f"data.test_root={tmp_path}/test.txt"]
    overrides += [f"data.tokenizer={pieces}", "data.max_test_samples=5"]
    task = task_from(config(*SMALL, *overrides))
    data = [load(config, *overrides, client=client, num_clients=clients) for client in range(clients)]
    task.know(task.together([one.about for one in data]))
    targets = torch.cat([targets for one in data for _, targets in one.test])
    assert targets.shape == (5, 7)
    sums = task.score(torch.zeros(5, 7, 280), targets, ["bits_per_byte"])
    assert task.means(sums, 5)["bits_per_byte"] == pytest.approx(math.log2(280))


def test_a_missing_library_is_said_with_what_brings_it(monkeypatch):
    def no_tokenizers(name, *rest):
        if name == "tokenizers":
            raise ImportError(name)
        return importing(name, *rest)

    importing = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", no_tokenizers)
    with pytest.raises(UserError, match=r"data.tokenizer=folder needs the package tokenizers: pip install"):
        tokenizer_from("folder")
    assert isinstance(tokenizer_from("bytes"), Bytes)


def test_every_byte_comes_back():
    text = "Zwölf Boxkämpfer".encode()
    tokens = Bytes().encode(text)
    assert bytes(tokens.tolist()) == text and Bytes().decode(tokens.tolist()) == text.decode()
    assert Bytes().decode([255, 65]) == "\ufffdA"
