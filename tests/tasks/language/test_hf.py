"""Models of transformers as networks of a task: built, refused, cut, tied, adapted, exported."""

import builtins

import pytest
import torch
from runs import ROOT, summary
from simulation import compose

from splitlearn import local, saved
from splitlearn.errors import UserError
from splitlearn.exchange import network, ragged
from splitlearn.segments import adapters

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

HF = ["task=causal_lm", "arch=hf", "arch.depth=3", "arch.width=16", "arch.heads=2", "task.context=8"]
HF += ["task.sample_bytes=0", "compressor=none"]
RUN = ["num_clients=1", "samples_per_epoch=16", "batch_size=8", "epochs=1", "data.max_test_samples=8"]
ABOUT = {"vocab_size": 256, "context": 8}
TOKENS = torch.arange(24).view(3, 8)


def build(*overrides, **options):
    return network.build(compose(*HF, *overrides), ABOUT, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tied Llama, as save_pretrained writes it."""
    path = tmp_path_factory.mktemp("llama")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.LlamaConfig(vocab_size=300, max_position_embeddings=32, tie_word_embeddings=True, **sizes)
    torch.manual_seed(7)
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture
def of_folder(folder):
    return ["task=causal_lm", "arch=hf", f"arch.model={folder}", "task.context=8", "task.sample_bytes=0"]


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3", "bert", "opt", "gpt_neox", "gemma2", "mistral"])
def test_a_kind_with_sizes(kind):
    built = build(f"arch.config={kind}", "cut=1")
    assert built.client[0](TOKENS).shape == (3, 8, 16)
    assert built.model.eval()(TOKENS).shape == (3, 8, 256)
    again = build(f"arch.config={kind}", "cut=1").model.state_dict()
    assert all(torch.equal(again[name], value) for name, value in built.model.state_dict().items())
    earlier = built.model(TOKENS.index_fill(1, torch.tensor([7]), 9))  # a token sees those before it alone
    assert torch.equal(earlier[:, :7], built.model(TOKENS)[:, :7])


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ([], "arch=hf needs one of arch.model=.* and arch.config="),
        (["arch.config=llama", "arch.model=x"], "arch=hf needs one of"),
        (["arch.config=lama"], "arch.config=lama is no kind of model that transformers knows"),
        (["arch.config=roberta"], "arch.config=roberta counts positions by a padding token"),
        (["arch.config=llama", "+arch.wings=2"], "arch.wings is no key of the configuration of arch.config=llama"),
        (["arch.config=llama", "arch.width=15"], "arch.width=15 must be a multiple of arch.heads=2"),
        (["arch.config=llama", "arch.dtype=int8"], "arch.dtype=int8 is unknown: choose float32"),
        (["arch.config=llama", "cut=9"], "cut=9 is after block 9, and there are 3 blocks"),
        (["arch.config=llama", "cut=model.layers.0.mlp"], r"cut=model.layers.0.mlp is not possible: .*skip connection"),
        (["arch.model=nowhere"], "arch.depth is for arch.config=<kind>"),
        (
            ["arch.config=llama", "lora.rank=2", "lora.targets=[wings]"],
            r"lora.targets=\[wings\] matches no linear layer",
        ),
    ],
)
def test_what_cannot_be_is_one_sentence(overrides, reason):
    with pytest.raises(UserError, match=f"^{reason}"):
        build(*overrides)


def test_what_a_folder_does_not_fit_is_one_sentence(of_folder, folder, tmp_path):
    def refused(*overrides, **about):
        with pytest.raises(UserError) as error:
            network.build(compose(*of_folder, *overrides), ABOUT | about)
        return str(error.value)

    said = f"the data have 301 tokens, and arch.model={folder} knows 300: set data.tokenizer={folder}"
    assert refused(vocab_size=301) == said
    assert refused("task.context=64").startswith("task.context=64 is more than arch.model=")
    assert f"arch.model={tmp_path} cannot be read" in refused(f"arch.model={tmp_path}")
    assert "or set arch.download=true" in refused("arch.model=nobody/nothing")


def test_weights_of_fewer_bits():
    built = build("arch.config=llama", "cut=1", "arch.dtype=bfloat16")
    assert {one.dtype for one in built.model.parameters()} == {torch.bfloat16}
    assert built.cuts[0].dtype == torch.bfloat16
    assert built.client[1](built.server(built.client[0](TOKENS))).dtype == torch.bfloat16


def test_a_missing_package_is_one_sentence(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name in ("transformers", "peft"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"^arch=hf needs the package transformers: pip install -e '.\[hf\]'$"):
        build("arch.config=llama")
    with pytest.raises(UserError, match=r"^lora.rank needs the package peft: pip install -e '.\[hf\]'$"):
        network.build(compose("task=causal_lm", "lora.rank=2"), ABOUT)


def test_weights_of_a_folder_are_the_servers_and_fit_both_sides(of_folder, folder):
    model = transformers.LlamaForCausalLM.from_pretrained(folder).eval()
    fresh = network.build(compose(*of_folder, "cut=1"), ABOUT)
    built = network.build(compose(*of_folder, "cut=1"), ABOUT, pretrained=True)
    fresh.client.load_state_dict(built.client.state_dict())
    fresh.server.load_state_dict(built.server.state_dict())
    for part in (fresh.client, fresh.server):
        part.eval()
    found = fresh.client[1](fresh.server(fresh.client[0](TOKENS)))
    assert torch.equal(found, model(TOKENS).logits[..., :256])
    assert f"pretrained weights of {folder}" in built.notes


def test_a_tied_head_is_one_on_a_side_and_two_across_the_cut(of_folder):
    built = network.build(compose(*of_folder, "cut=1"), ABOUT)  # u_shaped
    assert "lm_head.weight" not in built.client.state_dict() | built.server.state_dict()
    embedding = built.client.parts[0].model.embed_tokens.weight
    assert built.client.parts[1].lm_head.weight is embedding
    assert sum(one is embedding for one in built.client.parameters()) == 1
    assert not any("is tied to" in note for note in built.notes)
    built.client.load_state_dict({name: value + 1 for name, value in built.client.state_dict().items()})
    assert built.client.parts[1].lm_head.weight is embedding is built.model.lm_head.weight

    built = network.build(compose(*of_folder, "cut=1", "exchange=labels_up"), ABOUT)
    assert "lm_head.weight" in built.server.state_dict()
    note = "lm_head.weight is tied to model.embed_tokens.weight, which is on the other side of the cut: the server has"
    assert f"{note} a copy of 19,200 bytes" in built.notes
    assert built.model.lm_head.weight is built.server.parts[0].lm_head.weight
    assert built.model.lm_head.weight is not built.model.model.embed_tokens.weight


@pytest.mark.parametrize("sides", adapters.SIDES)
def test_adapters_alone_train_where_they_are_wanted(sides):
    built = build("arch.config=llama", "cut=1", "lora.rank=2", "lora.targets=[q_proj,v_proj]", f"lora.sides={sides}")
    for side, part in (("client", built.client), ("server", built.server)):
        trains = [name for name, one in part.named_parameters() if one.requires_grad]
        assert all(".lora_" in name for name in trains)
        assert bool(trains) == (sides in (side, "both"))
        assert {
            name for name in part.state_dict() if ".lora_" in name
        } == part.state_dict().keys() - part.frozen_state()
    plain = build("arch.config=llama", "cut=1").model.eval()
    assert torch.equal(built.model.eval()(TOKENS), plain(TOKENS))  # they begin as nothing


@pytest.mark.parametrize("exchange", ["u_shaped", "labels_up"])
def test_an_export_loads_where_a_user_expects_it(of_folder, folder, exchange, tmp_path, run_here):
    local.run(compose(*of_folder, *RUN, f"exchange={exchange}", "cut=1"), tmp_path / "run")
    model = saved.load(tmp_path / "run").model()
    status, out = run_here(ROOT / "scripts" / "export.py", str(tmp_path / "run"), str(tmp_path / "model"))
    assert status == 0, out
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    assert torch.equal(loaded(TOKENS).logits[..., :256], model(TOKENS))
    is_tied = loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert is_tied == loaded.config.tie_word_embeddings == (exchange == "u_shaped")
    status, out = run_here(ROOT / "scripts" / "export.py", str(tmp_path / "run"), str(tmp_path / "model.safetensors"))
    assert status == 0, out
    from safetensors.torch import load_file

    plain = transformers.AutoModelForCausalLM.from_config(loaded.config)
    plain.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(plain.eval()(TOKENS).logits[..., :256], model(TOKENS))


def test_adapters_are_exported_alone_or_merged(of_folder, folder, tmp_path, run_here):
    export = ROOT / "scripts" / "export.py"
    run = tmp_path / "run"
    local.run(compose(*of_folder, *RUN, "cut=1", "lora.rank=2", "optimizer.lr=0.1"), run)
    model = saved.load(run).model()
    status, out = run_here(export, str(run), str(tmp_path / "qwen2.5-adapter"))
    assert status == 0, out
    base = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert not torch.equal(base(TOKENS).logits[..., :256], model(TOKENS))
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "qwen2.5-adapter").eval()
    assert torch.equal(loaded(TOKENS).logits[..., :256], model(TOKENS))
    status, out = run_here(export, str(run), str(tmp_path / "qwen2.5-merged"), "--merge")
    assert status == 0, out
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "qwen2.5-merged").eval()
    assert torch.allclose(merged(TOKENS).logits[..., :256], model(TOKENS), atol=1e-5)
    assert run_here(export, str(run), str(tmp_path / "model.pt"))[0].startswith("the run has adapters (lora.rank=2)")


def test_a_run_begins_with_the_weights_of_one_that_was_cut_elsewhere_and_had_no_adapters(tmp_path):
    tied = ["arch.config=llama", "+arch.tie_word_embeddings=true"]
    local.run(compose(*HF, *RUN, *tied, "cut=2"), tmp_path / "first")
    weights = saved.weights(str(tmp_path / "first"))
    assert "lm_head.weight" not in weights
    built = build(*tied, "cut=1", "exchange=labels_up", "lora.rank=2")
    network.load(built, weights, "init_from=first")
    assert torch.equal(built.model.eval()(TOKENS), saved.load(tmp_path / "first").model()(TOKENS))


def test_only_what_trains_is_sent(tmp_path):
    local.run(compose(*HF, *RUN, "arch.config=llama", "cut=1", "lora.rank=2"), tmp_path)
    built = build("arch.config=llama", "cut=1", "lora.rank=2")
    trained = sum(one.nbytes for one in built.client.parameters() if one.requires_grad)
    assert summary(tmp_path)["other_bytes"]["weights_up"] == trained


def test_a_classifier_with_adapters_and_a_new_head_is_one_of_pefts(reviews, tmp_path, run_here):
    peft, folder = pytest.importorskip("peft"), tmp_path / "bert"
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    kind = transformers.BertConfig(vocab_size=300, num_labels=2, **sizes)  # the data have three classes
    transformers.BertForSequenceClassification(kind).save_pretrained(folder)
    task = ["task=sequence_classification", "arch=hf", f"arch.model={folder}", *reviews]
    options = ["cut=1", "lora.rank=2", "num_clients=1", "batch_size=8", "epochs=1", "optimizer.lr=0.05"]
    local.run(compose(*task, *options), tmp_path / "run")
    model = saved.load(tmp_path / "run").model()
    status, out = run_here(ROOT / "scripts" / "export.py", str(tmp_path / "run"), str(tmp_path / "adapter"))
    assert status == 0, out
    base = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=3, ignore_mismatched_sizes=True
    )
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    texts = torch.tensor([[5, 6, 7, 8], [9, 8, -1, -1]])
    expected = loaded(input_ids=texts.clamp(min=0), attention_mask=texts >= 0).logits
    assert torch.allclose(model(texts), expected, atol=1e-6)
    status, out = run_here(ROOT / "scripts" / "export.py", str(tmp_path / "run"), str(tmp_path / "whole"), "--merge")
    assert status == 0, out
    whole = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "whole").eval()
    assert torch.allclose(whole(texts.clamp(min=0), attention_mask=texts >= 0).logits, model(texts), atol=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "modernbert"])
@pytest.mark.parametrize("overrides", [["cut=1"], ["exchange=u_shaped", "cut=0"]], ids=" ".join)
def test_classifiers_of_each_kind_are_cut_with_the_lengths_of_texts(kind, overrides):
    sizes = ["arch.depth=3", "arch.width=16", "arch.heads=2", "data.max_length=24"]
    cfg = compose("task=sequence_classification", "arch=hf", f"arch.config={kind}", *sizes, *overrides)
    built = network.build(cfg, {"num_classes": 3, "classes": [*"abc"], "vocab_size": 256, "tokenizer": "bytes"})
    tokens = torch.randint(256, (3, 10), generator=torch.Generator().manual_seed(0))
    tokens[1, 6:], tokens[2, 1:] = -1, -1
    lengths, expected = torch.tensor([10, 6, 1]), built.model.eval()(tokens)
    x = tokens
    for number, (side, part) in enumerate(built.parts()):
        if number:
            x = ragged.padded(ragged.rows_of(x, lengths), lengths)  # as it arrives
        x = side.run(part.eval(), x, lengths)
    assert expected.shape == (3, 3) and torch.equal(x, expected)
