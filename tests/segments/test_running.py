"""Cuts of models that torch.fx cannot trace, which are made by running them."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from torch.func import functional_call

from splitlearn.errors import UserError
from splitlearn.segments import split, valid_cuts
from splitlearn.segments.bottleneck import with_bottleneck
from splitlearn.segments.parts import Older, Parts

pytest.importorskip("transformers")
from hf_models import build, tokens

CUTS = {
    "gpt2": ("transformer.wte", "transformer.h.0", "transformer.h.2"),
    "llama": ("model.layers.0", "model"),
    "tied llama": ("model.embed_tokens", "model.layers.1"),
    "qwen3": ("model.layers.0", "model.layers.1"),
    "bert": ("bert.embeddings", "bert.encoder.layer.1"),
    "gemma2": ("model.layers.0", "model.layers.1"),
    "mistral": ("model.layers.0", "model.layers.1"),
    "neox": ("gpt_neox.layers.0", "gpt_neox.layers.1"),
    "opt": ("model.decoder.layers.0", "model.decoder.layers.1"),
    "modernbert": ("model.layers.0", "model.layers.1"),
    "deberta": ("deberta.encoder.layer.0", "deberta.encoder.layer.1"),
    "t5": ("encoder.embed_tokens", "encoder.block.2.layer.1"),
}


def gradients(*modules):
    return {name: one.grad for module in modules for name, one in module.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("name", CUTS)
def test_the_parts_are_the_model_bit_for_bit(name):
    model, whole = build(name), build(name)
    for cut in CUTS[name]:
        client, server = split(model, cut, tokens(2, 8))
        for batch, length in ((2, 8), (5, 13), (1, 3)):
            x, training = tokens(batch, length, seed=batch), batch != 5
            for module in (whole, client, server):
                module.train(training)
                module.zero_grad()
            torch.manual_seed(1)
            expected = whole(x)
            torch.manual_seed(1)
            smashed = client(x)
            received = smashed.detach().requires_grad_()
            found = server(received)
            assert torch.equal(found, expected)
            expected.square().sum().backward()
            found.square().sum().backward()
            smashed.backward(received.grad)
            own, of_whole = gradients(client, server), gradients(whole)
            for tied in own.keys() - of_whole.keys():  # one parameter with two names: its gradients add up
                assert any(own[tied] is own[other] for other in of_whole)
                own.pop(tied)
            assert own.keys() == of_whole.keys()
            assert all(torch.equal(own[key], of_whole[key]) for key in own)


@pytest.mark.parametrize("name", CUTS)
def test_a_state_has_the_models_names_each_once(name):
    model = build(name)
    for cut in CUTS[name]:
        states = [part.state_dict() for part in split(model, cut, tokens(2, 8))]
        assert not states[0].keys() & states[1].keys()
        assert states[0].keys() | states[1].keys() == model.state_dict().keys()
        assert all(value is not None and not value.is_meta for state in states for value in state.values())


def test_all_that_is_listed_splits_and_nothing_within_a_residual_block():
    model = build("llama")
    paths = [point.path for point in valid_cuts(model, tokens(2, 8))]
    assert paths == ["model.embed_tokens", *(f"model.layers.{i}" for i in range(3)), "model"]
    listed = "Valid cuts: model.embed_tokens, model.layers.0"
    with pytest.raises(UserError, match=rf"^cut=model.layers.1.self_attn is not possible: .*skip connection.*{listed}"):
        split(model, "model.layers.1.self_attn", tokens(2, 8))
    with pytest.raises(UserError, match=r"^cut=model.layers.9 is not possible: no module has this path"):
        split(model, "model.layers.9", tokens(2, 8))
    with pytest.raises(UserError, match=r"^cut=lm_head is not possible: .*server segment without parameters"):
        split(model, "lm_head", tokens(2, 8))


def test_a_bottleneck_is_refused():
    with pytest.raises(UserError, match=r"^bottleneck=… needs a network that torch.fx can trace"):
        with_bottleneck(build("llama"), "model.layers.0", 4, tokens(2, 8))


def test_a_bias_of_the_first_block_that_all_others_need_is_refused():
    with pytest.raises(UserError, match=r"^cut=encoder.block.1 is not possible: .*not one tensor of floats"):
        split(build("t5"), "encoder.block.1", tokens(2, 8))


@pytest.mark.parametrize("name", ["gpt2", "qwen3", "bert"])
def test_three_parts(name):
    model, whole = build(name).eval(), build(name).eval()
    first, rest = split(model, CUTS[name][-2], tokens(2, 8))
    middle, last = split(rest, CUTS[name][-1], first(tokens(2, 8)).detach())
    for part in (first, middle, last):
        part.eval()
    x = tokens(3, 11, seed=4)
    assert torch.equal(last(middle(first(x))), whole(x))
    states = [set(part.state_dict()) for part in (first, middle, last)]
    assert set.union(*states) == set(model.state_dict())
    assert sum(map(len, states)) == len(model.state_dict())
    with pytest.raises(UserError, match=r"the module is not used|without parameters"):
        split(rest, CUTS[name][0] if name == "bert" else CUTS[name][-2], first(x).detach())


def test_a_part_holds_no_more_than_its_own():
    model = build("llama")
    client, server = split(model, "model.layers.0", tokens(2, 8))
    first, middle = (weakref.ref(model.model.layers[i].mlp.up_proj.weight) for i in (0, 1))
    del model, server
    gc.collect()
    assert first() is client.model.layers[0].mlp.up_proj.weight
    assert middle() is None
    assert client.model.layers[1].mlp.up_proj.weight.untyped_storage().nbytes() <= 4


def test_other_weights_copies_autocast_and_the_meta_device():
    model = build("gpt2").eval()
    client, server = split(model, "transformer.h.0", tokens(2, 8))
    x = tokens(3, 5)
    weights = {name: 2 * value.detach() for name, value in client.named_parameters()}
    assert not torch.equal(functional_call(client, weights, (x,)), client(x))
    older = Older(Parts([client]))
    expected = client(x)
    with torch.no_grad():
        client.transformer.h[0].mlp.c_fc.weight.mul_(2)
    assert torch.equal(older(x), expected) and not torch.equal(client(x), expected)
    other = copy.deepcopy(client)
    assert torch.equal(other(x), client(x))
    assert not {id(one) for one in other.parameters()} & {id(one) for one in client.parameters()}
    whole = build("gpt2").eval()
    whole.load_state_dict(client.state_dict() | server.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(server(client(x)), whole(x))
    with torch.device("meta"):
        parts = split(build("bert"), "bert.encoder.layer.0", tokens(2, 8).to("meta"))
        assert parts[1](parts[0](torch.zeros(3, 5, dtype=torch.int64))).shape == (3, 5, 50)


class Untraceable(nn.Module):
    """A root with parameters and buffers of its own, and a forward that branches on values."""

    def __init__(self, in_place=False):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.norm, self.start, self.in_place = nn.BatchNorm1d(4), nn.Parameter(torch.randn(4)), in_place
        self.end = nn.Parameter(torch.randn(4))
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x):
        x = (x + self.start) * self.scale
        for block in self.blocks:
            x = block(x) if x.isfinite().all() else x
            if self.in_place:
                x.relu_()
        return self.norm(x) * self.end


def test_three_parts_of_other_widths():
    class Narrowing(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(8 - i, 7 - i) for i in range(4))

        def forward(self, x):
            for i, block in enumerate(self.blocks):
                x = block(x).view(len(x), 7 - i).sin() if x.isfinite().all() else x
            return x

    model = Narrowing()
    first, rest = split(model, "blocks.0", torch.zeros(2, 8))
    middle, last = split(rest, "blocks.2", torch.zeros(2, 7))
    x = torch.randn(5, 8)
    assert torch.equal(last(middle(first(x))), model(x))


def test_a_tied_parameter_of_older_weights_has_one_gradient():
    model = build("tied llama").eval()
    first, rest = split(model, "model.layers.0", tokens(2, 8))
    middle, last = split(rest, "model.layers.1", first(tokens(2, 8)).detach())
    client, x = Parts([first, last]).eval(), tokens(3, 5)
    older = Older(client)
    older[1](middle.eval()(older[0](x))).square().sum().backward()
    older.hand_gradients_on()
    found = gradients(client)
    assert len(older.weights) == len(list(client.parameters()))
    whole = build("tied llama").eval()
    whole(x).square().sum().backward()
    assert all(
        torch.equal(value, gradients(whole)[name.partition(".")[2].partition(".")[2]]) for name, value in found.items()
    )


@pytest.mark.parametrize("in_place", [False, True])
def test_what_the_root_itself_holds_is_on_one_side(in_place):
    torch.manual_seed(0)
    model = Untraceable(in_place)
    whole = copy.deepcopy(model)
    client, server = split(model, "blocks.1", torch.zeros(2, 4))
    assert {"start", "blocks.0.weight"} < set(client.state_dict())
    assert {"end", "scale", "norm.running_mean"} < set(server.state_dict())
    x = torch.randn(6, 4)
    smashed = client(x)
    before = smashed.detach().clone()
    assert torch.equal(server(smashed), whole(x))
    assert torch.equal(smashed, before)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, (client.state_dict() | server.state_dict())[name])
