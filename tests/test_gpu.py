"""Runs on CUDA are runs on the CPU, up to rounding. Run with `pytest -m gpu`."""

from pathlib import Path

import pytest
import torch
from runs import LAUNCH, TINY, metrics, run

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
OPTIONS = [
    ["compressor=ms"],
    ["codecs=klt", "compressor@weights=uq", "exchange=u_shaped"],
    ["exchange=aligned", "codecs=klt", "bottleneck=16", "compressor.bits=2"],
    ["exchange=send_once", "exchange.local_epochs=1", "codecs=klt"],
    ["topology=sequential", "compressor=klt", "delta=uint8", "data.augment=none"],
    ["defence=[noise,drop,nopeek]", "optimizer=adamw", "pipeline_depth=2"],
    ["task=causal_lm", "codecs=klt", "batch_size=4"],
    ["precision=bf16", "arch=resnet_slim", "data.augment=crop_flip"],
    ["precision=fp16", "compressor=qu"],
]


def losses(cwd: Path, name: str, *options: str) -> list[float]:
    """Of a run's epochs, the server's or, where it does not train, the clients' own."""
    status, out = run([*LAUNCH, *TINY, "epochs=2", *options, f"hydra.run.dir={name}"], cwd)
    assert status == 0, out
    return [line.get("loss", line.get("local_loss")) for line in metrics(cwd / name, "epoch")]


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_cuda_trains_as_the_cpu_does(options, tmp_path):
    expected = losses(tmp_path, "cpu", *options, "client.device=cpu", "server.device=cpu")
    for name, client in (("cuda", "cuda"), ("mixed", "cpu")):
        found = losses(tmp_path, name, *options, f"client.device={client}", "server.device=cuda")
        assert found == pytest.approx(expected, rel=0.05)
    for segment in (tmp_path / "cuda").glob("*_segment*.pt"):  # which a machine without CUDA can read
        assert {value.device.type for value in torch.load(segment).values()} == {"cpu"}


def test_a_run_goes_on_on_another_device(tmp_path):
    constant = "schedule=constant"
    expected = losses(tmp_path, "whole", constant, "epochs=4", "server.device=cuda")
    losses(tmp_path, "parts", constant, "server.device=cuda", "client.device=cpu")
    found = losses(tmp_path, "parts", constant, "epochs=4", "server.device=cpu", "client.device=cuda")
    assert found == pytest.approx(expected, rel=0.05)
