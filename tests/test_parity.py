"""Real runs over RPC equal plain programs in one process, bit for bit."""

import pytest
import torch
from runs import metrics, slow
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
        slow("vgg_slim", "medium"),
        *(slow("resnet18", cut) for cut in ("shallow", "medium", "deep")),
        *(slow("vgg19", cut) for cut in ("shallow", "medium", "deep")),
    ],
)
def test_one_client_without_compression_trains_the_uncut_model(arch, cut, tmp_path):
    assert_trains_the_uncut_model(tmp_path, f"arch={arch}", f"cut={cut}")


@pytest.mark.slow
@pytest.mark.parametrize("cut", ["shallow", "medium"])
def test_so_does_one_with_its_channels_last(cut, tmp_path):
    assert_trains_the_uncut_model(
        tmp_path, "arch=vgg_slim", f"cut={cut}", "channels_last=true", "data.augment=crop_flip"
    )


@pytest.mark.parametrize(
    ("arch", "cut"),
    [
        ("convnet", "[block1,pool]"),
        slow("resnet18", "shallow"),
        slow("convnet", "medium"),
        slow("resnet18", "[layer1.0,layer4]"),
        *(slow("vgg19", cut) for cut in ("shallow", "deep", "[features.25,avgpool]")),
    ],
)
def test_so_does_one_that_keeps_its_labels(arch, cut, tmp_path):
    overrides = ["exchange=u_shaped", f"arch={arch}", f"cut={cut}"]
    assert_trains_the_uncut_model(tmp_path, *overrides, dropout="client" if "avgpool" in cut else "server")


@pytest.mark.parametrize(
    "overrides",
    [slow(["arch=vgg_slim"]), ["exchange=u_shaped", "bottleneck=[null,16]"]],
)
def test_so_does_one_with_a_bottleneck(overrides, tmp_path):
    assert_trains_the_uncut_model(tmp_path, "bottleneck=16", *overrides)


GPT = ["task=causal_lm", "arch.depth=3", "arch.width=16", "arch.heads=2", "task.context=12", "task.sample_bytes=0"]


@pytest.mark.parametrize("exchange", ["labels_up", "u_shaped"])
@pytest.mark.parametrize("cut", ["0", "2"])
def test_so_does_one_of_text(exchange, cut, tmp_path):
    plain = ["clip_norm=null", "schedule=cosine", "warmup.epochs=0"]  # a norm of all the network's is nobody's
    assert_trains_the_uncut_model(tmp_path, *GPT, *plain, f"exchange={exchange}", f"cut={cut}")


ENCODER = ["task=sequence_classification", "arch.depth=2", "arch.width=16", "arch.heads=2"]


@pytest.mark.parametrize(
    "overrides",
    [["cut=1"], ["cut=mean"], ["exchange=u_shaped", "cut=0"], ["exchange=u_shaped", "cut=1", "cut_back=mean"]],
    ids=" ".join,
)
def test_so_does_one_of_texts_of_different_lengths(overrides, reviews, tmp_path):
    plain = ["clip_norm=null", "schedule=cosine", "warmup.epochs=0", "optimizer.lr=0.01"]
    assert_trains_the_uncut_model(
        tmp_path / "run", *ENCODER, *reviews, *plain, *overrides, samples="samples_per_epoch=21"
    )


@pytest.mark.parametrize(
    "overrides",
    [
        ["compressor=klt", "compressor@downlink=linked", "partition=dirichlet", "task.label_smoothing=0.1"],
        ["compressor=ms", "topology.average=step", "cut=0", "task.class_weights=[1,2,0.5]"],
        slow(
            [
                "exchange=u_shaped",
                "compressor=qu",
                "compressor@features=splitfc",
                "topology=sequential",
                "accumulate=2",
            ]
        ),
        ["exchange=u_shaped", "delta=bf16", "compressor=uq", "topology=sequential", "samples_per_epoch=13", "epochs=4"],
    ],
    ids=" ".join,
)
def test_clients_with_texts_of_different_lengths_equal_the_simulation(overrides, reviews, tmp_path):
    options = ["num_clients=2", "epochs=2", "batch_size=8"]
    assert_equals_the_simulation(tmp_path / "run", *ENCODER, *reviews, *options, *overrides)


def assert_trains_the_uncut_model(tmp_path, *overrides, dropout="server", samples="data.max_train_samples=21"):
    # 3 steps an epoch, the last of 5 samples
    cfg = compose(*overrides, "compressor=none", "num_clients=1", "batch_size=8", "epochs=2", samples, *SMALL)
    losses, (client,), server = run(cfg, tmp_path)
    expected_losses, expected_state = train_uncut(cfg, dropout)
    assert len(losses) == 6 and losses == expected_losses
    assert_equal(client | server, {name: expected_state[name] for name in client | server})
    assert (client | server).keys() == expected_state.keys()


def assert_equals_the_simulation(folder, *overrides):
    cfg = compose("batch_size=16", *overrides, "seed=5", *SMALL)
    losses, clients, server = run(cfg, folder)
    expected_losses, expected_clients, expected_server = train_split(cfg)
    assert losses == pytest.approx(expected_losses, rel=1e-12)  # the mean of three is rounded differently
    if cfg.topology.get("average") == "never":  # one that was never drawn has none of its own
        numbers = [int(path.stem.rpartition("_")[2]) for path in sorted(folder.glob("client_segment_*.pt"))]
        expected_clients = [expected_clients[number] for number in numbers]
    else:
        assert len(clients) == 1
    for client, expected in zip(clients, expected_clients, strict=False):
        assert_equal(client, expected)
    assert_equal(server, expected_server)
    names = {name.partition(".")[0] for name in server if name.startswith("bottleneck")}
    assert len(names) == ("[" in str(cfg.bottleneck)) + (cfg.bottleneck is not None)
    return clients


@pytest.mark.parametrize(
    "overrides",
    [
        slow(["compressor=none"]),
        slow(["compressor=ms"]),
        slow(
            ["compressor=ms", "compressor.scope=sample", "backward=gated", "compressor@downlink=ms", "downlink.bits=3"]
        ),
        slow(["compressor=rt", "compressor@downlink=qu", "topology.average=step"]),
        slow(["compressor=sp", "topology.average=never", "partition=dirichlet", "last_batch=merge"]),
        slow(["compressor=qu", "topology=sequential", "compressor@downlink=rt", "last_batch=drop"]),
        ["compressor=ms", "topology=sequential", "partition=dirichlet", "freeze=block1"],
        slow(["compressor=ms", "topology.average=step", "partition=dirichlet", "freeze=[block1.0,block2.1,block3.0]"]),
        [
            *("accumulate=3", "clip_norm=0.5", "schedule=one_cycle", "warmup.epochs=0.5", "partition=dirichlet"),
            *("task.label_smoothing=0.1", "task.class_weights=balanced"),
        ],
        slow(
            [
                *("accumulate=2", "topology=sequential", "exchange=u_shaped", "schedule=one_cycle"),
                *("partition=dirichlet", "clip_norm=0.5", "task.class_weights=[1,2,1,2,1,2,1,2,1,0.5]"),
            ]
        ),
        slow(["clip_norm=0.5", "topology.average=step", "schedule=one_cycle", "partition=dirichlet"]),
        ["exchange=u_shaped", "compressor@features=ms", "compressor@feature_gradient=qu", "compressor@downlink=qu"],
        ["compressor=klt", "compressor@downlink=linked", "partition=dirichlet"],
        slow(["compressor=klt", "compressor.weighted=0.3", "compressor.refresh=3", "compressor@downlink=linked"]),
        slow(["compressor=klt", "compressor@downlink=klt", "topology=sequential"]),
        slow(
            [
                "exchange=u_shaped",
                "compressor=klt",
                "compressor@downlink=linked",
                "compressor@features=klt",
                "compressor@feature_gradient=linked",
                "downlink.bits=0.9",
            ]
        ),
        slow(["compressor=uq", "compressor@downlink=uq", "backward=gain"]),
        slow(
            [
                "exchange=u_shaped",
                "cut=[block1,pool]",
                "backward=gated",
                "topology=sequential",
                "compressor@features=rt",
            ]
        ),
        slow(["exchange=u_shaped", "compressor=rt", "compressor@feature_gradient=rt", "topology.average=step"]),
        slow(["exchange=u_shaped", "topology.average=never", "partition=dirichlet"]),
        slow(["bottleneck=16", "compressor=ms", "partition=dirichlet", "optimizer.momentum=0"]),
        slow(["bottleneck=9", "compressor=qu", "topology=sequential", "freeze=block1", "bottleneck_batches=2"]),
        [*GPT, "warmup.epochs=0.5", "task.label_smoothing=0.1", "compressor=qu", "partition=iid"],
        slow([*GPT, "exchange=labels_up", "topology.average=step", "freeze=embedding", "optimizer.decay=all"]),
        slow(["bottleneck=[16,100]", "exchange=u_shaped", "compressor=rt", "topology.average=step"]),
        ["delta=bf16", "epochs=3", "compressor=klt", "compressor@downlink=linked", "partition=dirichlet"],
        slow(["delta=fp32", "compressor=rt", "topology=sequential", "epochs=3"]),
        [
            "compressor@weights=uq",
            "weights.bits=3",
            "epochs=3",
            "bottleneck=16",
            "freeze=block1",
            "partition=dirichlet",
        ],
        slow(["compressor@weights=qu", "weights.rounding=stochastic", "epochs=3", "compressor=rt"]),
    ],
    ids=lambda overrides: " ".join(overrides),
)
def test_three_clients_equal_the_simulation(overrides, tmp_path):
    options = ["num_clients=3", "epochs=2", "data.max_train_samples=151"]
    clients = assert_equals_the_simulation(tmp_path, *options, *overrides)
    assert len(clients) == (3 if "topology.average=never" in overrides else 1)


@pytest.mark.parametrize(
    "overrides",
    [
        ["compressor=rt", "partition=dirichlet"],
        slow(["delta=bf16", "compressor=uq", "epochs=5"]),
        slow(["compressor=ms", "topology.average=step", "partition=dirichlet"]),
        slow(["compressor=sp", "topology.average=never"]),
        slow(["topology=sequential", "compressor=rt"]),
        slow(["exchange=u_shaped", "compressor@features=rt"]),
    ],
    ids=lambda overrides: " ".join(overrides),
)
def test_so_do_two_of_six_clients_in_each_epoch(overrides, tmp_path):
    options = ["num_clients=6", "membership.sample=2", "epochs=3", "data.max_train_samples=151"]
    assert_equals_the_simulation(tmp_path, *options, *overrides)
    drawn = {epoch: set() for epoch in range(1, 6 if "epochs=5" in overrides else 4)}
    for line in metrics(tmp_path, "step"):
        drawn[line["epoch"]].update(line["clients"])
    assert {len(clients) for clients in drawn.values()} == {2}
    assert len(set(map(frozenset, drawn.values()))) > 1


def test_a_run_repeats_bit_for_bit_and_another_seed_does_not(tmp_path):
    runs = []
    for number, seed in enumerate((1, 1, 2)):
        cfg = compose(f"seed={seed}", "compressor=rt", "num_clients=2", "epochs=1", "data.max_train_samples=96", *SMALL)
        runs.append(run(cfg, tmp_path / str(number)))
    assert runs[0][0] == runs[1][0] != runs[2][0]
    assert_equal(runs[0][2], runs[1][2])
