"""Defences: what they do to a tensor, what they claim, and that runs with them are as any other."""

import json
import math

import pytest
import torch
from runs import metrics
from simulation import compose

from splitlearn import checks, local
from splitlearn.defences.drop import Drop
from splitlearn.defences.maxnorm import MaxNorm
from splitlearn.defences.noise import Noise
from splitlearn.defences.nopeek import distance_correlation
from splitlearn.errors import UserError
from splitlearn.measure.display import epoch_line
from splitlearn.privacy.observing import observed
from splitlearn.tasks import task_from

SMALL = ["num_clients=2", "batch_size=8", "epochs=2", "data.max_train_samples=70", "data.max_test_samples=9", "seed=3"]
CLAIM = ["defence=noise", "defence.noise.clip=50", "defence.noise.delta=1e-5"]


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind, norm", [("gaussian", 2), ("laplace", 1)])
def test_noise_is_of_its_size_after_the_cut(kind, norm):
    x = torch.randn(40, 50, 10, generator=stream()) * torch.logspace(-3, 2, 40).view(-1, 1, 1)
    clipped = Noise(kind=kind, clip=3.0, scale=0.0).protect(x, stream(1))
    norms = torch.linalg.vector_norm(clipped.flatten(1), norm, dim=1)
    before = torch.linalg.vector_norm(x.flatten(1), norm, dim=1)
    torch.testing.assert_close(norms, before.clamp(max=3.0))
    noise = Noise(kind=kind, clip=3.0, scale=0.5).protect(x, stream(1)) - clipped
    expected = 1.5 if kind == "gaussian" else 1.5 * math.sqrt(2)
    assert noise.std().item() == pytest.approx(expected, rel=0.03) and abs(noise.mean().item()) < 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_noise_without_a_norm_is_as_large_as_each_tensor(dtype):
    x = (torch.randn(40, 50, 10, generator=stream()) * torch.logspace(-3, 2, 40).view(-1, 1, 1)).to(dtype)
    noisy = Noise(scale=0.5).protect(x, stream(1))
    sizes = (noisy - x).double().flatten(1).square().mean(1).sqrt() / x.double().flatten(1).square().mean(1).sqrt()
    assert noisy.dtype == dtype and (sizes - 0.5).abs().max() < 0.06
    zeros = torch.zeros_like(x[:2], requires_grad=True)  # as where no unit of a map is on
    left = Noise(scale=0.5).protect(zeros, stream(1))
    left.sum().backward()
    assert not left.any() and zeros.grad.isfinite().all()


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
    found = torch.stack([MaxNorm().protect(x, stream(seed)).norm(dim=1) for seed in range(200)])
    mean_squares = found.square().mean(0).sqrt()
    assert torch.allclose(mean_squares, x.norm(dim=1).max().expand(2000), rtol=0.25)
    directions = torch.nn.functional.cosine_similarity(MaxNorm().protect(x, stream(1)), x).abs()
    torch.testing.assert_close(directions, torch.ones(2000))


@pytest.mark.parametrize(
    "shape, what, kept",
    [
        ((8, 32, 4, 4), "channels", (1, 1, 4, 4)),
        ((8, 32, 4, 4), "patches", (1, 32, 1, 1)),
        ((8, 5, 32), "channels", (1, 5, 1)),
        ((8, 64), "channels", (1, 1)),
    ],
)
def test_what_is_dropped_is_dropped_whole(shape, what, kept):
    out = Drop(what, 0.25).protect(torch.ones(shape), stream())
    torch.testing.assert_close(out.unique(), torch.tensor([0, 4 / 3]))
    for axis, size in enumerate(kept):
        if size > 1:
            assert (out == out.narrow(axis, 0, 1)).all()
    assert (out == 0).float().mean().item() == pytest.approx(0.25, abs=0.1)


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["defence=noise", "defence.noise.channel=features"], "does not cross in exchange=labels_up: choose one of"),
        (["defence=noise", "defence.noise.kind=pink"], "defence.noise: kind=pink is unknown"),
        (["defence=drop", "defence.drop.share=1"], "defence.drop: share=1 is out of range"),
        (["defence=noise", "defence.noise.delta=1e-5"], "delta claims privacy of tensors that are cut down to a norm"),
        (["defence=noise", "defence.noise.delta=2"], "defence.noise: delta=2 is out of range"),
        (["defence=nopeek", "task=causal_lm"], "defence.nopeek: it measures distances of inputs"),
        ([*CLAIM, "bottleneck=8"], "bottleneck_init=orthogonal"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_does_not_go_together(overrides, words):
    pytest.importorskip("dp_accounting")
    with pytest.raises(UserError, match=r"^defence") as error:
        checks.check(compose(*overrides))
    assert words in str(error.value)


def test_a_claim_is_refused_where_samples_are_mixed(tmp_path):
    pytest.importorskip("dp_accounting")
    cfg = compose(*SMALL, *CLAIM)
    with pytest.raises(UserError, match=r"block1\.1 is a batch norm before the cut"):
        local.run(cfg, tmp_path)


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
