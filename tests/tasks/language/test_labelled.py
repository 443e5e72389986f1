"""Tables of texts with labels: how they are read, shared out and made into batches."""

import json

import numpy as np
import pytest
import torch

from splitlearn.errors import UserError
from splitlearn.tasks import task_from
from splitlearn.tasks.language import labelled
from splitlearn.tasks.language.tokens import Bytes

SMALL = ["task=sequence_classification"]
ROWS = [("so good", "good"), ("bad, I say", "bad"), ('she said "no"', "bad"), ("fine — really", "good")]


def write(path, rows=ROWS, header=("text", "label")):
    quoted = [[f'"{field.replace(chr(34), 2 * chr(34))}"' for field in row] for row in rows]
    if path.suffix == ".csv":
        lines = [",".join(header), *map(",".join, quoted)]
    elif path.suffix == ".tsv":
        lines = ["\t".join(row) for row in ([header] if header else []) + rows]
    else:
        lines = [json.dumps(dict(zip(header, row, strict=True))) for row in rows]
    path.write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    return path


def built(config, root, *overrides):
    cfg = config(*SMALL, f"data.root={root}", *overrides)
    told = []
    return *labelled.build(cfg.data, cfg.seed, Bytes(), told.append), told


def texts_of(dataset):
    return [bytes(tokens.astype(np.uint8)).decode(errors="replace") for tokens in dataset.tokens]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_a_table_is_read_in_each_of_its_forms(suffix, config, tmp_path):
    train, test, classes, told = built(config, write(tmp_path / f"a{suffix}"), "data.test_fraction=0")
    assert texts_of(train) == [text for text, _ in ROWS]
    assert classes == ["bad", "good"] and train.targets.tolist() == [1, 0, 0, 1] and not len(test) and not told
    inputs, label = train[0]
    assert inputs.shape == (128,) and inputs.dtype == torch.int64 and label == 1
    assert bytes(inputs[:7].tolist()) == b"so good" and (inputs[7:] == -1).all()


def test_a_folder_has_its_test_texts_apart(config, tmp_path):
    write(tmp_path / "train.tsv")
    write(tmp_path / "validation.jsonl", ROWS[:1])
    (tmp_path / "readme.md").write_text("about")
    assert list(map(len, built(config, tmp_path)[:2])) == [4, 1]
    write(tmp_path / "test.csv", ROWS[:2])
    assert list(map(len, built(config, tmp_path)[:2])) == [4, 2]
    (tmp_path / "exam").mkdir()
    write(tmp_path / "exam" / "test.csv", ROWS[:2])  # as a server may have it, with evaluate.on=server
    assert list(map(len, built(config, tmp_path / "exam")[:2])) == [0, 2]
    other = write(tmp_path / "more.csv", ROWS[:3])
    assert list(map(len, built(config, tmp_path, f"data.test_root={other}")[:2])) == [4, 3]


def test_a_part_is_held_out_by_the_seed(config, tmp_path):
    rows = [(f"text {number}", "ab"[number % 2]) for number in range(40)]
    path, found = write(tmp_path / "a.csv", rows), []
    for seed in (0, 0, 1):
        train, test, *_ = built(config, path, "data.test_fraction=0.25", f"seed={seed}")
        assert sorted(texts_of(train) + texts_of(test)) == sorted(text for text, _ in rows) and len(test) == 10
        found.append(texts_of(test))
    assert found[0] == found[1] != found[2]


def test_names_of_columns_and_classes_can_be_given(config, tmp_path):
    path = write(tmp_path / "a.tsv", [("7", "1.0", "well\t".strip()), ("8", "-1.0", "no")], header=None)
    train, _, classes, _ = built(
        *(config, path, "data.columns=[id,stars,review]", "data.text_column=review", "data.label_column=stars"),
        *("data.classes=['1.0','0.0','-1.0']", "data.test_fraction=0"),
    )
    assert texts_of(train) == ["well", "no"]
    assert classes == ["1.0", "0.0", "-1.0"] and train.targets.tolist() == [0, 2]


def test_both_halves_of_a_character_are_one(config, tmp_path):
    (tmp_path / "a.jsonl").write_text(r'{"text": "\ud83d\ude00", "label": "\ud83d\ude00"}')
    train, _, classes, _ = built(config, tmp_path / "a.jsonl", "data.test_fraction=0")
    assert texts_of(train) == classes == ["\U0001f600"]


def test_labels_may_be_numbers_or_truths(config, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": true}\n{"text": "b", "label": 3}')
    train, _, classes, _ = built(config, tmp_path / "a.jsonl", "data.test_fraction=0")
    assert classes == ["3", "true"] and train.targets.tolist() == [1, 0]


def test_what_is_too_long_is_cut_off_and_what_is_empty_left_out(config, tmp_path):
    path = write(tmp_path / "a.csv", [*ROWS, ("", "bad")])
    train, *_, told = built(config, path, "data.max_length=7", "data.test_fraction=0")
    assert texts_of(train)[:3] == ["so good", "bad, I ", "she sai"] and len(train) == 4
    assert told == [
        "1 texts are left out: there is nothing in them",
        "3 of 5 texts are cut off after 7 tokens (data.max_length)",
    ]


@pytest.mark.parametrize(
    "name, content, overrides, expected",
    [
        (None, "", [], r"a\.csv does not exist: set it to a file of texts \(\.csv"),
        ("a.txt", "text,label", ["data.root=a.txt"], r"data\.root=a\.txt is no \.csv, \.tsv or \.jsonl file"),
        (
            "a.csv",
            "text,label",
            ["data.root=null"],
            r"^data=text_classification needs a table of texts",
        ),
        ("a.csv", "words,label\na,b", [], r"^a\.csv has no column text, but words, label: set data\.text_column"),
        ("a.csv", "text,mark\na,b", [], r"^a\.csv has no column label, but text, mark: set data\.label_column"),
        ("a.csv", "text,label\na,b\na,b,c", [], r"^a\.csv, line 3 has 3 fields, and there are 2 columns"),
        ("a.csv", 'text,label\na,b\n"a"b,c', [], r"^a\.csv, line 3 is no table"),
        ("a.csv", "text,label\na,", [], r"^a\.csv, line 2 has no label \(label\)"),
        ("a.csv", b"text,label\n\xff,b", [], r"^a\.csv is no UTF-8 text"),
        (
            "a.csv",
            "text,label\na,b",
            ["data.classes=[c,d]"],
            r"^a\.csv, line 2 has the label b, which is not in",
        ),
        ("a.csv", "a,b", ["data.columns=[x,y]"], r"^data\.columns has no column text, but x, y"),
        (
            "a.csv",
            "a,b",
            ["data.columns=[text,text]"],
            r"^data\.columns=.* has to be null, or a list of",
        ),
        ("a.csv", "a,b", ["data.test_root=nowhere.csv"], r"^data\.test_root=nowhere\.csv does not exist"),
        ("a.csv", "a,b", ["data.test_root=."], r"^data\.test_root=\. is a folder"),
        ("a.csv", "a,b", ["data.tokenizer=nowhere"], r"^data\.tokenizer=nowhere cannot be loaded"),
        ("a.jsonl", '{"text": 1', ["data.root=a.jsonl"], r"^a\.jsonl, line 1 is no JSON"),
        ("a.jsonl", "[1, 2]", ["data.root=a.jsonl"], r"^a\.jsonl, line 1 is no JSON object with text and label"),
        ("a.jsonl", '{"text": "a"}', ["data.root=a.jsonl"], r"^a\.jsonl, line 1 has no column label, but text"),
        ("a.jsonl", '{"text": null, "label": 1}', ["data.root=a.jsonl"], r"^a\.jsonl, line 1 has no text \(text\)"),
        (
            "a.jsonl",
            r'{"text": "hi \ud83d", "label": 1}',
            ["data.root=a.jsonl"],
            r"^a\.jsonl, line 1 has half of a character, \\ud83d: take",
        ),
        (
            "a.jsonl",
            '{"text": "a", "label": 1}\n' r'{"text": "b", "label": "\udc80"}',
            ["data.root=a.jsonl"],
            r"^a\.jsonl, line 2 has half of a character, \\udc80",
        ),
        ("mine.csv", "text,label", ["data.root=."], r"no training samples"),
        (
            "more.csv",
            "text,label",
            ["data.root=two"],
            r"^data\.root=two needs one file of .* it has b\.csv",
        ),
    ],
)
def test_what_cannot_be_read_is_one_sentence(name, content, overrides, expected, config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    if name == "more.csv":
        (tmp_path / "two").mkdir()
        for other in "bc":
            write(tmp_path / "two" / f"{other}.csv")
    cfg = config(*SMALL, "data.root=a.csv", *overrides)
    with pytest.raises(UserError, match=expected):
        task_from(cfg).load(cfg, 0, 1)


@pytest.mark.parametrize(
    "overrides, expected",
    [
        (["data=shakespeare"], r"^data=shakespeare has no texts with labels: .* needs data=text_classification"),
        (["data.max_length=70000"], r"^data\.max_length=70000 must be a whole number, 1 to 65,535"),
        (["task=causal_lm", "data=text_classification"], "is no text: task=causal_lm needs"),
        (["task=image_classification", "data=text_classification"], "no images: task=sequence_classification learns"),
    ],
)
def test_a_task_of_other_data_is_one_sentence(overrides, expected, config):
    cfg = config(*SMALL, *overrides)
    with pytest.raises(UserError, match=expected):
        task_from(cfg).check(cfg)


def test_batches_are_as_long_as_their_longest_and_clients_share_by_label(config, tmp_path):
    rows = [("x" * (1 + number % 9), "abc"[number % 3]) for number in range(90)]
    path = write(tmp_path / "a.csv", rows)
    options = ["batch_size=8", "partition=dirichlet", "partition.alpha=0.1", "data.test_fraction=0"]
    cfg = config(*SMALL, f"data.root={path}", *options)
    task, counts = task_from(cfg), []
    for client in range(2):
        data = task.load(cfg, client, 2)
        assert data.about == {"num_classes": 3, "classes": ["a", "b", "c"], "vocab_size": 256, "tokenizer": "bytes"}
        task.check_about(data.about)
        labels = []
        for batch in data.train:
            inputs, targets = task.to_device(batch, torch.device("cpu"))
            lengths = task.lengths(inputs)
            assert inputs.shape[1] == lengths.max() and (inputs[lengths.argmax()] == ord("x")).all()
            labels += targets.tolist()
        counts.append(np.bincount(labels, minlength=3))
    assert sum(counts).tolist() == [30, 30, 30] and abs(counts[0] - counts[1]).max() > 15


def test_clients_need_the_same_classes_and_tokens(config):
    task = task_from(config(*SMALL))
    about = {"num_classes": 2, "classes": ["a", "b"], "vocab_size": 256, "tokenizer": "bytes"}
    task.check_about(about)
    assert task.disagreement(about, dict(about)) is None
    other = about | {"tokenizer": "x", "vocab_size": 300}
    assert "it has another tokenizer, x (300 tokens)" in task.disagreement(about, other)
    assert "it lacks b and has c" in task.disagreement(about, about | {"classes": ["a", "c"]})
    for change in ({"vocab_size": 0}, {"tokenizer": 3}, {"classes": ["a"]}, {"num_classes": "2"}, {"more": 1}):
        with pytest.raises(ValueError):
            task.check_about(about | change)


def test_a_trained_tokenizer_puts_its_marks_around_a_text(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    from splitlearn.tasks.language.tokens import tokenizer_from

    words = {"[CLS]": 0, "[SEP]": 1, "[UNK]": 2, "a": 3, "b": 4}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 1), ("[CLS]", 0))
    made.enable_padding(length=9)
    made.save(str(tmp_path / "tokenizer.json"))
    found, cut_off = tokenizer_from(str(tmp_path)).encode_all(["a b", "b", "a b a b"], 4)
    assert [tokens.tolist() for tokens in found] == [[0, 3, 4, 1], [0, 4, 1], [0, 3, 4, 1]] and cut_off == 1
