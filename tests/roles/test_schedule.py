import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock, Mock

import pytest
import torch
import torch.nn.functional as F
from runs import metrics, slow
from simulation import Updates, compose
from test_resume import assert_same, results
from torch.func import functional_call

import splitlearn
from splitlearn import checks, local
from splitlearn.config import compressor_from
from splitlearn.errors import NonFiniteError, UserError
from splitlearn.exchange import network
from splitlearn.roles.batch import Batch, finish
from splitlearn.seeds import derive
from splitlearn.segments.trainable import buffers_of
from splitlearn.tasks.image_classification import sources
from splitlearn.tasks.loading import loaders

OPTIONS = ["num_clients=1", "batch_size=8", "epochs=2", "data.max_train_samples=70", "data.max_test_samples=20"]


def run(folder: Path, *options: str) -> Path:
    local.run(compose(*OPTIONS, *options), folder)
    return folder


@pytest.mark.parametrize("accumulate", [1, slow(4)])
def test_forward_passes_see_weights_one_step_older(accumulate, tmp_path, one_thread):
    options = [
        f"accumulate={accumulate}",
        "client.num_threads=1",
        "server.num_threads=1",
        "pipeline_depth=2",
        "compressor=rt",
        "backward=gated",
        "schedule=constant",
    ]
    folder, cfg = run(tmp_path, *options), compose(*OPTIONS, *options)
    train, test, classes = sources.build(cfg.data, cfg.seed)
    loader, _ = loaders(train, test, 0, 1, cfg)
    built = network.build(cfg, {"num_classes": len(classes)})
    client, server = built.client.parts[0], built.server
    updates = [Updates(segment, cfg, num_updates=1) for segment in (client, server)]
    uplink, losses = compressor_from(cfg, "compressor"), []

    def weights() -> dict[str, torch.Tensor]:
        return {name: weight.detach().clone().requires_grad_() for name, weight in client.named_parameters()}

    for epoch in (1, 2):
        loader.batch_sampler.start_at(epoch)
        older = weights()
        for batch, (images, labels) in enumerate(loader, start=1):
            uplink.seed(derive(cfg.seed, "uplink", 0, epoch, batch))
            smashed = functional_call(client, older, (images,))
            loss = F.cross_entropy(server(splitlearn.compress(smashed, uplink, None, "gated")), labels)
            loss.backward()
            before = weights()
            for name, weight in client.named_parameters():
                weight.grad = older[name].grad
            for one in updates:
                one.add(len(labels) / min(8 * accumulate, 70 - (batch - 1) // accumulate * accumulate * 8))
                if batch in (*range(accumulate, 9, accumulate), 9):
                    one.step()
            older = before
            losses.append(loss.item())
    assert [line["loss"] for line in metrics(folder, "step")] == losses
    for name, expected in (("client_segment.pt", client), ("server_segment.pt", server)):
        found = torch.load(folder / name)
        assert all(torch.equal(found[key], value) for key, value in expected.state_dict().items())


@pytest.mark.slow
def test_a_batch_computed_ahead_is_computed_again_after_a_checkpoint(tmp_path):
    """So with one at every step nothing is older, and a run goes on from any one as if it had not ended."""
    every_step = ["num_clients=2", "checkpoint.every_steps=1"]
    one, two = (run(tmp_path / str(depth), *every_step, f"pipeline_depth={depth}") for depth in (1, 2))
    assert_same(two, one)
    often = ["num_clients=2", "checkpoint.every_steps=3", "checkpoint.keep=100", "pipeline_depth=2"]
    whole = run(tmp_path / "whole", *often)
    assert results(whole, set())[0] != results(one, set())[0]
    part = shutil.copytree(whole, tmp_path / "part")
    (part / "summary.json").unlink()
    for path in part.glob("checkpoints/*"):
        if path.name > "step-000000003.pt":
            path.unlink()
    assert_same(run(part, *often), whole)


def test_a_batch_that_is_found_not_to_be_finite_at_its_end_is_left_out():
    def half():
        yield "message"
        raise NonFiniteError("its loss is inf")

    client = MagicMock(cfg=compose("nonfinite=skip"), exchange=SimpleNamespace(rounds=[None]))
    client.trainable.segment = torch.nn.BatchNorm1d(2)
    begun, before = half(), buffers_of(client.trainable.segment)
    batch = Batch(begun, Mock(), Mock(), 4, None, before, ({}, {}), 1.0, next(begun))
    client.trainable.segment(torch.randn(3, 2))
    reply = SimpleNamespace(part="answer")
    assert finish(client, batch, reply) == (0.0, reply)
    assert all(map(torch.equal, client.trainable.segment.buffers(), before))
    client.cfg.nonfinite, begun = "stop", half()
    batch = Batch(begun, Mock(), Mock(), 4, None, before, ({}, {}), 1.0, next(begun))
    with pytest.raises(UserError, match="its loss is inf"):
        finish(client, batch, reply)


@pytest.mark.parametrize("option", ["topology.average=step", "nonfinite=skip"])
def test_what_does_not_go_together_is_named(option):
    with pytest.raises(UserError, match="pipeline_depth=2 works with nonfinite=stop"):
        checks.check(compose("pipeline_depth=2", option))
