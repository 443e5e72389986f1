"""Runs of models of transformers, which are cut by running them, equal plain programs in one process, bit for bit."""

import pytest
from runs import slow
from test_parity import assert_equals_the_simulation, assert_trains_the_uncut_model
from test_resume import test_going_on_from_any_step_changes_nothing as assert_can_go_on

pytest.importorskip("transformers")
pytest.importorskip("peft")
pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = ["task=causal_lm", "arch=hf", "arch.depth=3", "arch.width=16", "arch.heads=2", "task.context=8"]
SMALL += ["task.sample_bytes=0"]
PLAIN = ["clip_norm=null", "schedule=cosine", "warmup.epochs=0"]  # a norm of all the network's is nobody's
KINDS = {
    "llama": [],
    "qwen3": [],
    "bert": ["+arch.hidden_dropout_prob=0.0", "+arch.attention_probs_dropout_prob=0.0"],
}
LORA = ["lora.rank=2", "optimizer.lr=0.05"]
FAST = [("llama", "labels_up", "1", []), ("qwen3", "u_shaped", "0", LORA), ("bert", "u_shaped", "2", [])]
CASES = [
    (kind, exchange, cut, lora)
    for kind in KINDS
    for exchange in ("labels_up", "u_shaped")
    for cut in ("0", "1")
    for lora in ([], LORA)
]


@pytest.mark.parametrize(
    ("kind", "exchange", "cut", "lora"),
    [*FAST, *(slow(*case) for case in CASES if case not in FAST)],
    ids=lambda value: "lora" if value == LORA else str(value or "all"),
)
def test_one_client_without_compression_trains_the_uncut_model(kind, exchange, cut, lora, tmp_path):
    overrides = [*SMALL, *PLAIN, f"arch.config={kind}", *KINDS[kind], f"exchange={exchange}", f"cut={cut}", *lora]
    if (kind, exchange) == ("bert", "labels_up"):  # else the server trains a copy of the embedding
        overrides.append("+arch.tie_word_embeddings=false")
    assert_trains_the_uncut_model(tmp_path, *overrides)


@pytest.mark.parametrize(
    ("exchange", "cut", "lora"),
    [
        ("labels_up", "1", LORA),
        ("u_shaped", "2", []),
        slow("labels_up", "0", []),
        slow("u_shaped", "1", LORA),
        slow("labels_up", "bert.pooler", LORA),
    ],
    ids=lambda value: "lora" if value == LORA else str(value or "all"),
)
def test_so_does_one_that_tells_texts_of_different_lengths_apart(exchange, cut, lora, reviews, tmp_path):
    options = ["task=sequence_classification", "arch=hf", "arch.config=bert", *SMALL[2:5], *KINDS["bert"], *reviews]
    options += [*PLAIN, "optimizer.lr=0.01", f"exchange={exchange}", f"cut={cut}", *lora]
    assert_trains_the_uncut_model(tmp_path / "run", *options, samples="samples_per_epoch=21")


@pytest.mark.parametrize(
    "overrides",
    [
        ["arch.config=llama", "exchange=labels_up", "lora.rank=2", "lora.sides=client", "compressor=qu"],
        slow(["arch.config=gpt2", "exchange=u_shaped", "topology=sequential"]),
    ],
    ids=["lora", "tied"],
)
def test_two_clients_equal_the_simulation(overrides, tmp_path):
    dropout = [f"+arch.{name}_pdrop=0.0" for name in ("attn", "embd", "resid")] * ("arch.config=gpt2" in overrides)
    options = ["num_clients=2", "epochs=2", "data.max_train_samples=40", *dropout]
    assert_equals_the_simulation(tmp_path, *SMALL, "partition=iid", *overrides, *options)


def test_a_run_with_adapters_goes_on_as_if_nothing_had_been(tmp_path):
    small = ["arch.config=llama", "lora.rank=2", "lora.dropout=0.1", "samples_per_epoch=26", "batch_size=8"]
    assert_can_go_on([*SMALL, *small, "compressor=rt"], tmp_path, [])
