"""Defences: what they do to a tensor, what they claim, and that runs with them are as any other."""

import io
import json
import math

import pytest
import torch
from rich.console import Console
from runs import metrics, summary
from simulation import compose

from splitlearn import checks, local
from splitlearn.defences import Defence
from splitlearn.defences.draws import Draws
from splitlearn.defences.drop import Drop
from splitlearn.defences.maxnorm import MaxNorm
from splitlearn.defences.noise import Noise
from splitlearn.defences.nopeek import distance_correlation
from splitlearn.errors import UserError
from splitlearn.exchange import network, ragged
from splitlearn.exchange.channels import channels_of, know
from splitlearn.exchange.codecs import Codecs
from splitlearn.exchange.exchange import exchange_from
from splitlearn.exchange.passage import Passage
from splitlearn.measure.display import Display, epoch_line
from splitlearn.privacy.observing import observed
from splitlearn.tasks import task_from

SMALL = ["num_clients=2", "batch_size=8", "epochs=2", "data.max_train_samples=70", "data.max_test_samples=9", "seed=3"]
CLAIM = ["defence=noise", "defence.noise.clip=50", "defence.noise.delta=1e-5"]


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draws(number: int = 0, x: torch.Tensor | None = None) -> Draws:
    return Draws(b"secret", torch.zeros(1) if x is None else x, number)


@pytest.mark.parametrize("kind, norm", [("gaussian", 2), ("laplace", 1)])
def test_noise_is_of_its_size_after_the_cut(kind, norm):
    x = torch.randn(40, 50, 10, generator=stream()) * torch.logspace(-3, 2, 40).view(-1, 1, 1)
    clipped = Noise(kind=kind, clip=3.0, scale=0.0).protect(x, draws())
    norms = torch.linalg.vector_norm(clipped.flatten(1), norm, dim=1)
    before = torch.linalg.vector_norm(x.flatten(1), norm, dim=1)
    torch.testing.assert_close(norms, before.clamp(max=3.0))
    noise = Noise(kind=kind, clip=3.0, scale=0.5).protect(x, draws()) - clipped
    expected = 1.5 if kind == "gaussian" else 1.5 * math.sqrt(2)
    assert noise.std().item() == pytest.approx(expected, rel=0.03) and abs(noise.mean().item()) < 0.05


@pytest.mark.parametrize("kind", ["gaussian", "laplace"])
def test_what_is_cut_down_to_a_norm_is_rounded_after_the_noise(kind):
    x = torch.randn(40, 500, generator=stream()).bfloat16()
    noise = Noise(kind=kind, clip=3.0, scale=0.01)
    assert noise.protect(x, draws()).equal(noise.protect(x.float(), draws()).bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_noise_without_a_norm_is_as_large_as_each_tensor(dtype):
    x = (torch.randn(40, 50, 10, generator=stream()) * torch.logspace(-3, 2, 40).view(-1, 1, 1)).to(dtype)
    noisy = Noise(scale=0.5).protect(x, draws())
    sizes = (noisy - x).double().flatten(1).square().mean(1).sqrt() / x.double().flatten(1).square().mean(1).sqrt()
    assert noisy.dtype == dtype and (sizes - 0.5).abs().max() < 0.06
    zeros = torch.zeros_like(x[:2], requires_grad=True)  # as where no unit of a map is on
    left = Noise(scale=0.5).protect(zeros, draws())
    left.sum().backward()
    assert not left.any() and zeros.grad.isfinite().all()


@pytest.mark.parametrize("clip", [None, 3.0])
def test_noise_does_not_count_rows_that_a_sample_has_not_got(clip):
    x, lengths = torch.randn(3, 400, 8, generator=stream()), [400, 100, 10]
    is_there = torch.arange(400) < torch.tensor(lengths).unsqueeze(1)
    x = torch.where(is_there.unsqueeze(-1), x, 1e3)
    noise = Noise(clip=clip, scale=0.5)
    found = ragged.protected(x, torch.tensor(lengths), noise, draws())
    for one, before, length in zip(found, x, lengths, strict=True):
        alone = Noise(clip=clip, scale=0.0).protect(before[None, :length], draws())[0]
        expected = 1.5 if clip else 0.5
        assert (one[:length] - alone).std().item() == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize("defence", [Noise(), Noise(clip=3.0), MaxNorm(), Drop()], ids=lambda one: type(one).__name__)
def test_no_defence_goes_by_such_rows_nor_leaves_anything_in_them(defence):
    x, lengths = torch.randn(3, 6, 4, generator=stream()), torch.tensor([6, 2, 1])
    is_there = torch.arange(6) < lengths.unsqueeze(1)
    one, other = (
        ragged.protected(torch.where(is_there.unsqueeze(-1), x, filling), lengths, defence, draws())
        for filling in (0.0, 1e3)
    )
    assert torch.equal(one, other) and one[is_there].any() and not one[~is_there].any()


def test_draws_are_of_the_secret_the_place_and_the_tensor():
    x = torch.randn(3, 5, generator=stream())
    first = Draws(b"secret", x, "noise", 1, 2).normal((2, 3))
    assert first.dtype == torch.float32 and torch.equal(
        first, Draws(b"secret", x.clone(), "noise", 1, 2).normal((2, 3))
    )
    nudged = x.clone()
    nudged[2, 4] += 1e-6
    others = [(b"other", x, "noise", 1, 2), (b"secret", x, "noise", 1, 3), (b"secret", nudged, "noise", 1, 2)]
    for other in others:
        assert (first - Draws(*other).normal((2, 3))).abs().min() > 1e-4
    assert Draws(b"secret", x.bfloat16(), 1).uniform((1000,)).aminmax().max < 1


def test_the_other_end_cannot_take_noise_away_over_several_machines(tmp_path):
    drawn = {}
    for name in ("one", "other", None):
        cfg = compose(*SMALL, "defence=noise", f"secret_file={tmp_path / name if name else 'null'}")
        channel = channels_of(cfg, exchange_from(cfg))["smashed"]
        drawn[name] = Draws(channel.secret, torch.zeros(4), 1).normal((4,))
    known = Draws(b"3", torch.zeros(4), 1).normal((4,))  # by the seed
    assert torch.equal(drawn[None], known)
    assert not torch.equal(drawn["one"], known) and not torch.equal(drawn["one"], drawn["other"])
    assert (tmp_path / "one").stat().st_mode & 0o077 == 0


def test_epsilon_is_the_librarys():
    accounting = pytest.importorskip("dp_accounting")
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant()
    accountant.compose(accounting.GaussianDpEvent(4.0), 10)
    claims = Noise(clip=3.0, scale=8.0, delta=1e-5).claims(10)  # two samples are up to 2·clip apart
    assert claims["epsilon"] == accountant.get_epsilon(1e-5) and claims["delta"] == 1e-5
    # By Mironov's bound at its best order: 10 α / (2·16) + log(1/δ) / (α - 1).
    bound = min(10 * a / 32 + math.log(1e5) / (a - 1) for a in range(2, 200))
    assert 0.8 * bound < claims["epsilon"] <= bound
    pure = Noise(kind="laplace", clip=3.0, scale=8.0, delta=1e-9).claims(1)["epsilon"]
    assert pure == pytest.approx(0.25, rel=0.1)  # 1 / (scale / 2)


def test_the_distance_correlation():
    x, other = torch.randn(200, 3, generator=stream()), torch.randn(200, 4, generator=stream(1))
    assert distance_correlation(x, x).item() == pytest.approx(1, abs=1e-4)
    assert (
        distance_correlation(x, 3 * x @ torch.linalg.qr(torch.randn(3, 3, generator=stream(2)))[0] + 1).item() > 0.999
    )
    assert distance_correlation(x, other).item() < 0.35 < 0.6 < distance_correlation(x, x + 0.3 * x.square()).item()
    y = x.clone().requires_grad_()
    distance_correlation(x, y).backward()
    assert y.grad.isfinite().all()


def test_max_norm_makes_lengths_alike():
    x = torch.randn(2000, 6, generator=stream()) * torch.logspace(-2, 0, 2000).unsqueeze(1)
    found = torch.stack([MaxNorm().protect(x, draws(seed)).norm(dim=1) for seed in range(200)])
    mean_squares = found.square().mean(0).sqrt()
    assert torch.allclose(mean_squares, x.norm(dim=1).max().expand(2000), rtol=0.25)
    directions = torch.nn.functional.cosine_similarity(MaxNorm().protect(x, draws()), x).abs()
    torch.testing.assert_close(directions, torch.ones(2000))


class Own(Defence):
    """Gives what a test asks for."""

    def __init__(self, gives=lambda x: x, adds=lambda x: None):
        self.gives, self.adds = gives, adds

    def protect(self, x, draws):
        return self.gives(x)

    def penalty(self, inputs, x):
        return self.adds(x)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"gives": lambda x: None}, "protect gave None, where a torch.float32 tensor of shape (4, 3) is to cross"),
        ({"gives": lambda x: x[:, :1]}, "protect gave a torch.float32 tensor of shape (4, 1), where"),
        ({"gives": lambda x: x.double()}, "protect gave a torch.float64 tensor of shape (4, 3), where"),
        ({"gives": lambda x: x.detach()}, "protect gave a tensor without a gradient"),
        ({"adds": lambda x: 1.0}, "penalty gave float: give None, or a 0-d tensor"),
        ({"adds": lambda x: x.sum(1)}, "penalty gave a torch.float32 tensor of shape (4,): give None, or a 0-d tensor"),
        ({"adds": lambda x: x.detach().sum()}, "penalty gave a tensor without a gradient: give None"),
    ],
)
def test_what_a_defence_cannot_give_is_told_by_class_and_method(options, words):
    cfg = compose("defence=drop")
    channels = channels_of(cfg, exchange_from(cfg))
    own = Own(**options)
    own.key = channels["smashed"].defences["drop"].key
    channels["smashed"].defences["drop"] = own
    passage = Passage(Codecs(channels, "up"), (0, 1, 1), torch.device("cpu"), "it", 9, inputs=torch.ones(4, 3))
    with pytest.raises(UserError) as error:
        passage.defended(channels["smashed"], torch.ones(4, 3, requires_grad=True) * 2)
    assert str(error.value).startswith(f"defence.drop: Own.{words}")


def test_nothing_has_a_gradient_where_none_is_wanted():
    x, own = torch.ones(4, 3), Own(lambda x: x.detach() * 2)
    assert torch.equal(ragged.protected(x, None, own, draws()), 2 * x)
    with torch.no_grad():
        assert torch.equal(ragged.protected(x.requires_grad_(), None, own, draws()), 2 * x)


def test_a_map_of_texts_is_checked_as_well():
    with pytest.raises(UserError, match=r"^defence: Own\.protect_ragged gave None, where a torch"):
        ragged.protected(torch.ones(2, 3, 4), torch.tensor([3, 1]), Own(lambda x: None), draws())


@pytest.mark.parametrize(
    "shape, what, kept",
    [
        ((8, 32, 3, 4, 4), "channels", (1, 1, 3, 4, 4)),
        ((8, 32, 4, 4), "channels", (1, 1, 4, 4)),
        ((8, 32, 4, 4), "patches", (1, 32, 1, 1)),
        ((8, 5, 32), "channels", (1, 5, 1)),
        ((8, 64), "channels", (1, 1)),
    ],
)
def test_what_is_dropped_is_dropped_whole(shape, what, kept):
    out = Drop(what, 0.25).protect(torch.ones(shape), draws())
    torch.testing.assert_close(out.unique(), torch.tensor([0, 4 / 3]))
    for axis, size in enumerate(kept):
        if size > 1:
            assert (out == out.narrow(axis, 0, 1)).all()
    assert (out == 0).float().mean().item() == pytest.approx(0.25, abs=0.1)


@pytest.mark.parametrize(
    "overrides, words",
    [
        ([*CLAIM, "defence.noise.channel=gradient"], "use channel=smashed, or delta=null"),
        ([*CLAIM, "defence.noise.scale=0"], "defence.noise.scale=0 is out of range"),
        (["defence=noise", "defence.noise.clip=-5"], "defence.noise.clip=-5 is out of range"),
        (["defence=noise", "defence.noise.clip=true"], "defence.noise.clip=True is out of range"),
        (["defence=noise", "defence.noise.delta=x"], "defence.noise.delta=x is out of range"),
        (["defence=noise", "defence.noise.scale=abc"], "defence.noise.scale=abc must be a number, at least 0"),
        (["defence=drop", "defence.drop.share=null"], "defence.drop.share=null must be a number, at least 0"),
        (["defence=nopeek", "defence.nopeek.weight=abc"], "defence.nopeek.weight=abc must be a number, at least 0"),
        (["defence=noise", "defence.noise.channel=features"], "does not cross in exchange=labels_up: choose one of"),
        (["defence=noise", "defence.noise.kind=pink"], "defence.noise.kind=pink is unknown"),
        (["defence=drop", "defence.drop.share=1"], "defence.drop.share=1 is out of range"),
        (["defence=noise", "defence.noise.delta=1e-5"], "delta claims privacy of tensors that are cut down to a norm"),
        (["defence=noise", "defence.noise.delta=2"], "defence.noise.delta=2 is out of range"),
        (["defence=nopeek", "task=causal_lm"], "defence.nopeek: it measures distances of inputs"),
        ([*CLAIM, "bottleneck=8"], "bottleneck_init=orthogonal"),
        (["+defence.own._target_=builtins.dict"], "defence.own._target_=builtins.dict is no Defence: derive the class"),
        (
            ["+defence.own._target_=own.Own"],
            "defence.own._target_=own.Own cannot be imported: there is no module own",
        ),
        (["+defence._target_=own.Own"], "begin the YAML file of each with the line # @package defence.<name>"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_does_not_go_together(overrides, words):
    pytest.importorskip("dp_accounting")
    with pytest.raises(UserError, match=r"^defence") as error:
        checks.check(compose(*overrides))
    assert words in str(error.value)


def test_a_defence_may_be_called_as_an_option_of_another():
    drop = "{_target_: splitlearn.defences.drop.Drop, what: patches}"
    for name in ("scale", "channel", "what"):
        checks.check(compose(f"+defence.{name}={drop}"))


def test_a_claim_is_refused_where_samples_are_mixed(tmp_path):
    pytest.importorskip("dp_accounting")
    cfg = compose(*SMALL, *CLAIM)
    with pytest.raises(UserError, match=r"block1\.1 is a batch norm before the cut"):
        local.run(cfg, tmp_path)


@pytest.mark.parametrize("freeze", ["client", "[block1.1]"])
def test_a_claim_goes_with_a_batch_norm_that_is_frozen(freeze, tmp_path):
    pytest.importorskip("dp_accounting")
    cfg = compose(*SMALL, *CLAIM, "cut=block1", f"freeze={freeze}")
    know(channels_of(cfg, exchange_from(cfg)), network.build(cfg), cfg)


def test_patches_of_a_map_without_places_are_refused():
    cfg = compose(*SMALL, "defence=drop", "defence.drop.what=patches", "cut=flatten")
    with pytest.raises(UserError, match=r"^defence\.drop: .* use what=channels"):
        know(channels_of(cfg, exchange_from(cfg)), network.build(cfg), cfg)


def test_a_sample_may_come_twice_in_an_epoch_of_fewer_samples():
    pytest.importorskip("dp_accounting")
    noise = Noise(clip=3.0, scale=8.0, delta=1e-5)
    assert noise.claims(10, most=2)["epsilon_per_epoch"] == noise.claims(2)["epsilon"] < noise.claims(10)["epsilon"]


def test_a_claim_is_told(tmp_path):
    pytest.importorskip("dp_accounting")
    cfg = compose(*SMALL, *CLAIM, "defence.noise.scale=4", "cut=block1.0")
    local.run(cfg, tmp_path)
    lines = metrics(tmp_path, "epoch")
    assert 0 < lines[0]["noise_epsilon"] < lines[1]["noise_epsilon"]
    assert lines[0]["noise_epsilon"] == lines[1]["noise_epsilon_per_epoch"]
    assert f"ε {lines[1]['noise_epsilon']:.4g}" in epoch_line(2, 2, lines[1], task_from(cfg), 0, 0)
    claims = json.loads((tmp_path / "summary.json").read_text())["claims"]
    assert claims == {name: lines[1][name] for name in ("noise_epsilon", "noise_epsilon_per_epoch", "noise_delta")}


def test_epochs_in_which_nothing_is_sent_cost_no_privacy(tmp_path):
    pytest.importorskip("dp_accounting")
    once = ["exchange=send_once", "exchange.local_epochs=1", "exchange.resend_every=2", "epochs=4"]
    cfg = compose(*SMALL, *CLAIM, *once, "defence.noise.scale=4", "cut=block1.0")
    local.run(cfg, tmp_path)
    noise = channels_of(cfg, exchange_from(cfg))["smashed"].defences["noise"]
    epsilons = [noise.claims(number)["epsilon"] for number in range(3)]
    assert [line["noise_epsilon"] for line in metrics(tmp_path, "epoch")] == [epsilons[i] for i in (0, 1, 1, 2)]
    assert epsilons[0] == 0 < epsilons[1] < epsilons[2]
    display, screen = Display(), io.StringIO()
    display.console, display.num_clients = Console(file=screen, width=200), 2
    display.summary(summary(tmp_path), task_from(cfg), exchange_from(cfg).channels)
    said = (
        "differential privacy of each training sample's tensor, not of labels, weights and test samples: noise_epsilon"
    )
    assert said in screen.getvalue()


@pytest.mark.slow
def test_nopeek_lowers_the_distance_correlation(tmp_path):
    found = []
    for weight in (0, 100):
        options = ["defence=nopeek", f"defence.nopeek.weight={weight}", "compressor=none", "cut=shallow"]
        options += ["observe.batches=50", "observe.every=1", "observe.inputs=true", "num_clients=1"]
        options += ["data.max_train_samples=512", "batch_size=64", "epochs=3"]
        local.run(compose(*SMALL, *options), tmp_path / str(weight))
        last = observed(tmp_path / str(weight))[-4:]
        found.append(sum(distance_correlation(one["inputs"], one["channels"]["smashed"]).item() for one in last) / 4)
    assert found[1] < found[0] - 0.02


def test_a_gradient_of_samples_that_differ_in_length_is_protected_by_sample():
    cfg = compose("exchange=u_shaped", "defence=maxnorm", "codecs=none")
    channels = channels_of(cfg, exchange_from(cfg))
    for channel in channels.values():
        channel.shape, channel.is_ragged = (1, 4), True
    of_server, of_client = (
        Passage(Codecs(channels, way), (0, 1, 1), torch.device("cpu"), "it", 9) for way in ("down", "up")
    )
    lengths, features = torch.tensor([3, 1, 2]), torch.randn(3, 3, 4, generator=stream(), requires_grad=True)
    sent = of_server["features"].send(features, lengths)
    received = of_client["features"].receive(sent.wire, 3, lengths)
    gradient = torch.randn(3, 3, 4, generator=stream(1)) * torch.tensor([1.0, 5.0, 20.0]).view(-1, 1, 1)
    received.tensor.backward(gradient)
    sent.backward(received.gradient_wire)
    for length, protected, before in zip(lengths, features.grad, gradient, strict=True):
        factors = protected[:length] / before[:length]  # noise is along each sample's gradient
        torch.testing.assert_close(factors, factors[:1, :1].expand_as(factors))
        assert not protected[length:].any()
    assert (
        abs(factors[0, 0] - 1) < 1e-5 < abs(features.grad[0, 0, 0] / gradient[0, 0, 0] - 1)
    )  # the last is the longest
