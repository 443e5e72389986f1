"""Real runs over RPC equal plain programs in one process, bit for bit."""

import pytest
import torch
from runs import metrics
from simulation import compose, train_split, train_uncut

from splitlearn import local

SMALL = ["client.num_threads=1", "server.num_threads=1", "evaluate.every=100", "data.max_test_samples=9"]


pytestmark = pytest.mark.usefixtures("one_thread")


def run(cfg, folder):
    local.run(cfg, folder)
    clients = [torch.load(path) for path in sorted(folder.glob("client_segment*.pt"))]
    return [line["loss"] for line in metrics(folder, "step")], clients, torch.load(folder / "server_segment.pt")


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name in found:
        assert torch.equal(found[name], expected[name]), name


@pytest.mark.parametrize(
    ("arch", "cut"),
    [
        *(("convnet", cut) for cut in ("shallow", "medium", "deep")),
        ("resnet18", "shallow"),
        ("vgg_slim", "medium"),
        *(pytest.param("resnet18", cut, marks=pytest.mark.slow) for cut in ("medium", "deep")),
        *(pytest.param("vgg19", cut, marks=pytest.mark.slow) for cut in ("shallow", "medium", "deep")),
    ],
)
def test_one_client_without_compression_trains_the_uncut_model(arch, cut, tmp_path):
    assert_trains_the_uncut_model(tmp_path, f"arch={arch}", f"cut={cut}")


@pytest.mark.parametrize(
    ("arch", "cut"),
    [
        ("convnet", "[block1,pool]"),
        pytest.param("resnet18", "shallow", marks=pytest.mark.slow),
        pytest.param("convnet", "medium", marks=pytest.mark.slow),
        pytest.param("resnet18", "[layer1.0,layer4]", marks=pytest.mark.slow),
        *(pytest.param("vgg19", cut, marks=pytest.mark.slow) for cut in ("shallow", "deep", "[features.25,avgpool]")),
    ],
)
def test_so_does_one_that_keeps_its_labels(arch, cut, tmp_path):
    overrides = ["exchange=u_shaped", f"arch={arch}", f"cut={cut}"]
    assert_trains_the_uncut_model(tmp_path, *overrides, dropout="client" if "avgpool" in cut else "server")


def assert_trains_the_uncut_model(tmp_path, *overrides, dropout="server"):
    samples = "data.max_train_samples=21"  # 3 steps an epoch, the last of 5 samples
    cfg = compose(*overrides, "compressor=none", "num_clients=1", "batch_size=8", "epochs=2", samples, *SMALL)
    losses, (client,), server = run(cfg, tmp_path)
    expected_losses, expected_state = train_uncut(cfg, dropout)
    assert len(losses) == 6 and losses == expected_losses
    assert_equal(client | server, {name: expected_state[name] for name in client | server})
    assert (client | server).keys() == expected_state.keys()


@pytest.mark.parametrize(
    "overrides",
    [
        ["compressor=none"],
        ["compressor=ms"],
        ["compressor=ms", "compressor.scope=sample", "backward=gated", "compressor@downlink=ms", "downlink.bits=3"],
        ["compressor=rt", "compressor@downlink=qu", "topology.average=step"],
        ["compressor=sp", "topology.average=never", "partition=dirichlet", "last_batch=merge"],
        ["compressor=qu", "topology=sequential", "compressor@downlink=rt", "last_batch=drop"],
        ["compressor=ms", "topology=sequential", "partition=dirichlet", "freeze=block1"],
        ["compressor=ms", "topology.average=step", "partition=dirichlet", "freeze=[block1.0,block2.1,block3.0]"],
        ["exchange=u_shaped", "compressor@features=ms", "compressor@feature_gradient=qu", "compressor@downlink=qu"],
        ["exchange=u_shaped", "cut=[block1,pool]", "backward=gated", "topology=sequential", "compressor@features=rt"],
        pytest.param(
            ["exchange=u_shaped", "compressor=rt", "compressor@feature_gradient=rt", "topology.average=step"],
            marks=pytest.mark.slow,
        ),
        pytest.param(["exchange=u_shaped", "topology.average=never", "partition=dirichlet"], marks=pytest.mark.slow),
    ],
    ids=lambda overrides: " ".join(overrides),
)
def test_three_clients_equal_the_simulation(overrides, tmp_path):
    cfg = compose(
        *overrides, "num_clients=3", "batch_size=16", "epochs=2", "data.max_train_samples=151", "seed=5", *SMALL
    )
    losses, clients, server = run(cfg, tmp_path)
    expected_losses, expected_clients, expected_server = train_split(cfg)
    assert losses == pytest.approx(expected_losses, rel=1e-12)  # the mean of three is rounded differently
    for client, expected in zip(clients, expected_clients, strict=False):
        assert_equal(client, expected)
    assert len(clients) == (3 if cfg.topology.get("average") == "never" else 1)
    assert_equal(server, expected_server)


def test_a_run_repeats_bit_for_bit_and_another_seed_does_not(tmp_path):
    runs = []
    for number, seed in enumerate((1, 1, 2)):
        cfg = compose(f"seed={seed}", "compressor=rt", "num_clients=2", "epochs=1", "data.max_train_samples=96", *SMALL)
        runs.append(run(cfg, tmp_path / str(number)))
    assert runs[0][0] == runs[1][0] != runs[2][0]
    assert_equal(runs[0][2], runs[1][2])
