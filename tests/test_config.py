import math
import re

import hydra
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from runs import ROOT
from simulation import compose
from torch import nn

import splitlearn.compose
from splitlearn import checks, config
from splitlearn.compressors import REGISTRY
from splitlearn.errors import UserError
from splitlearn.hydras import VERSION_BASE
from splitlearn.rates import Rates
from splitlearn.segments.trainable import Trainable

CONF = ROOT / "conf"
CHOICES = sorted(
    (path.parent.name, path.stem)
    for path in CONF.glob("*/*.yaml")
    if path.parent.name not in ("hydra", "experiment", "sweep", "attack")
)
EXPERIMENTS = sorted(path.stem for path in CONF.glob("experiment/*.yaml"))
SWEEPS = sorted(path.stem for path in CONF.glob("sweep/*.yaml"))
SGD = {"_target_": "torch.optim.SGD", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": False}
SCHEDULER = "torch.optim.lr_scheduler."
RECIPES = {
    "vgg19_cifar10": {
        "arch": "vgg19",
        "data": ("cifar10", 10, 32),
        "epochs": 200,
        "optimizer": SGD,
        "schedule": {"_target_": SCHEDULER + "CosineAnnealingLR", "per": "epoch", "T_max": "200 epochs"},
    },
    "res18_cifar100": {
        "arch": "resnet18",
        "data": ("cifar100", 100, 32),
        "epochs": 200,
        "optimizer": SGD,
        "schedule": {
            "_target_": SCHEDULER + "MultiStepLR",
            "per": "epoch",
            "milestones": ["60 epochs", "120 epochs", "160 epochs"],
            "gamma": 0.2,
        },
    },
    "res34_imagenet": {
        "arch": "resnet34",
        "data": ("imagenet", 1000, 224),
        "epochs": 90,
        "optimizer": SGD | {"weight_decay": 1e-4},
        "schedule": {"_target_": SCHEDULER + "StepLR", "per": "epoch", "step_size": "30 epochs", "gamma": 0.1},
    },
}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_passes_check(experiment):
    checks.check(compose(f"experiment={experiment}"))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("compressor", ["none", "qu", "sp", "rt", "ms", "ms_best"])
@pytest.mark.parametrize("cut", ["shallow", "medium", "deep"])
def test_every_cell_of_the_papers_table_passes_check(experiment, compressor, cut):
    cfg = compose("sweep=paper", f"experiment={experiment}", f"cut={cut}", f"compressor={compressor}")
    checks.check(cfg)
    assert cfg.num_clients == 10
    about = {"qu": ("bits", 3), "sp": ("ratio", 0.95875), "rt": ("ratio", 0.95875), "ms": ("ratio", 0.99)}
    if compressor in about:
        key, value = about[compressor]
        assert cfg.compressor[key] == value


@pytest.mark.parametrize("experiment", RECIPES)
def test_experiment_is_the_papers_recipe(experiment):
    cfg, recipe = compose(f"experiment={experiment}"), RECIPES[experiment]
    assert cfg.arch.name == recipe["arch"]
    assert (cfg.data.name, cfg.data.num_classes, cfg.data.image_size) == recipe["data"]
    assert (cfg.batch_size, cfg.epochs) == (256, recipe["epochs"])
    assert cfg.optimizer == recipe["optimizer"]
    assert cfg.schedule == recipe["schedule"]


def test_command_line_wins_over_experiment():
    cfg = compose("experiment=vgg19_cifar10", "optimizer.lr=0.5", "epochs=7", "compressor=qu")
    assert (cfg.optimizer.lr, cfg.epochs, cfg.schedule.T_max) == (0.5, 7, "7 epochs")
    assert cfg.compressor._target_.endswith("UniformQuantizer")


@pytest.mark.parametrize("sweep", SWEEPS)
def test_codecs_win_over_a_sweep(sweep):
    cfg = compose(f"sweep={sweep}", "codecs=bf16")
    assert (cfg.precision, cfg.cut_precision) == ("bf16", None)


@pytest.mark.parametrize("group, choice", CHOICES)
def test_choice_passes_check(group, choice):
    tasks = {"causal_lm": ("gpt", "shakespeare", "text"), "sequence_classification": ("encoder", "text_classification")}
    task = [f"task={name}" for name, choices in tasks.items() if choice in choices]
    needed = {"defence=maxnorm": ["exchange=u_shaped"], "exchange=hijacking": ["evaluate.on=server"]}
    cfg = compose(*task, *needed.get(f"{group}={choice}", []), f"{group}={choice}")
    checks.check(cfg)
    if group == "defence":
        assert [*cfg.defence] == [choice]
    elif group in cfg:  # a preset of others leaves no node of its own
        assert cfg[group].get("name", choice) == choice


@pytest.mark.parametrize("group, key", [("compressor", "compressor"), ("compressor@downlink", "downlink")])
@pytest.mark.parametrize("name", REGISTRY)
def test_compressor_passes_check(name, group, key):
    if name == "linked" and key == "compressor":
        with pytest.raises(UserError, match="compressor=linked is for gradients"):
            checks.check(compose(f"{group}={name}"))
        return
    cfg = compose(f"{group}={name}", *["compressor=klt"] * (name == "linked"))
    checks.check(cfg)
    compressor = config.compressor_from(cfg, key)
    assert type(compressor) is REGISTRY[name]
    assert compressor == REGISTRY[name]()


@pytest.mark.parametrize("key", ["features", "feature_gradient"])
@pytest.mark.parametrize("name", REGISTRY)
def test_compressor_of_an_exchanges_own_channels_passes_check(name, key):
    if name == "linked" and key == "features":
        with pytest.raises(UserError, match="compressor@features=linked is for gradients"):
            checks.check(compose("exchange=u_shaped", f"compressor@{key}={name}"))
        return
    cfg = compose("exchange=u_shaped", f"compressor@{key}={name}", *["compressor@features=klt"] * (name == "linked"))
    checks.check(cfg)
    assert config.compressor_from(cfg, key) == REGISTRY[name]()
    assert key not in compose()


@pytest.mark.parametrize("uplink", ["ms", "uq", "none"])
def test_linked_needs_a_basis(uplink):
    with pytest.raises(UserError, match=f"compressor={uplink} has none: choose compressor=klt, or another compressor@"):
        checks.check(compose(f"compressor={uplink}", "compressor@downlink=linked"))


def test_compressor_takes_its_options_from_its_own_group():
    cfg = compose("compressor.bits=5", "compressor@downlink=ms", "downlink.ratio=0.5")
    uplink, downlink = config.compressor_from(cfg, "compressor"), config.compressor_from(cfg, "downlink")
    assert (uplink.ratio, uplink.bits, downlink.ratio, downlink.bits) == (0.99, 5, 0.5, 2)


@pytest.mark.parametrize("name", ["a (copy)", "1=2", "ünder"])
def test_compose_takes_paths_as_launch_does(name):
    assert compose("data=image_folder", f"data.root=/{name}").data.root == f"/{name}"


def test_compose_takes_overrides_one_by_one():
    with pytest.raises(TypeError, match="takes each override by itself: compose"):
        splitlearn.compose.compose(["cut=deep"])


def test_a_number_that_is_none_is_refused_in_options_of_ones_own():
    with pytest.raises(UserError, match=r"data\.mode=nan is no number: to mean the text, .*\"data\.mode='nan'\""):
        checks.check(compose("+data.mode=nan"))
    checks.check(compose("+data.mode='nan'", "+data.most=inf"))


def test_compose_leaves_another_programs_hydra_as_it_is(tmp_path):
    (tmp_path / "config.yaml").write_text("its: own")
    with hydra.initialize_config_dir(str(tmp_path), **VERSION_BASE):
        assert compose("cut=deep").cut == "deep"
        with pytest.raises(UserError, match="no_option is unknown"):
            compose("no_option=1")
        assert hydra.compose("config").its == "own"
    assert not GlobalHydra.instance().is_initialized()


@pytest.mark.parametrize("seeds, same", [((1, 1), True), ((1, 2), False)])
def test_random_compressors_draw_by_their_seed(seeds, same):
    cfg, x = compose("compressor=rt"), torch.rand(1000, generator=torch.Generator().manual_seed(0))
    first, second = (config.compressor_from(cfg, "compressor") for _ in seeds)
    first.seed(seeds[0]), second.seed(seeds[1])
    assert torch.equal(first.decode(first.encode(x)), second.decode(second.encode(x))) is same


@pytest.mark.parametrize(
    "override",
    [
        "compressor.ratio=1.5",
        "compressor.ratio=1.0",
        "compressor.bits=9",
        "compressor.bits=0",
        "compressor.rounding=up",
        "compressor.scope=pixel",
        "precision=fp8",
        "role=boss",
        "num_clients=0",
        "num_clients=32768",
        "num_clients=two",
        "num_clients=1.5",
        "batch_size=0",
        "batch_size=1.5",
        "epochs=0",
        "epochs=many",
        "evaluate.every=0",
        "log.error_every=0",
        "data.image_size=0",
        "data.augment=x",
        "backward=foo",
        "topology.average=x",
        "topology.weighting=x",
        "rpc.timeout_s=0",
        "rpc.connect_timeout_s=-1",
        "rpc.port=99999",
        "rpc.port=-1",
        "rpc.port=abc",
        "data.max_train_samples=0",
        "data.max_test_samples=-5",
        "membership.open=maybe",
        "membership.quorum=0",
        "membership.sample=0",
        "membership.sample=half",
        "early_stopping.patience=0",
        "early_stopping.min_delta=-0.1",
        "checkpoint.best=often",
        "membership.step_deadline_s=0",
        "observe.inputs=ture",
        "batch_size=99999999999999999999",
    ],
)
def test_mistake_is_named(override):
    key, value = override.split("=")
    with pytest.raises(UserError, match=rf"^{re.escape(key)}={re.escape(value)} "):
        checks.check(compose(override))


@pytest.mark.parametrize(
    "words, sentence",
    [
        ("num_clients=1.0", r"num_clients=1\.0 must be a whole number, 1 to 32767, or null"),
        ("lora.alpha=4", r"lora\.alpha=4 has no effect .*: add lora\.rank="),
        ("lora.targets=[q_proj]", r"lora\.targets=.* has no effect .*: add lora\.rank="),
        ("observe.inputs=true", r"observe\.inputs=true keeps nothing: add observe\.batches="),
        ("data.mean=[0.5,0.5]", r"data\.mean=\[0\.5, 0\.5\] must have 3 numbers"),
        ("data.std=[0,0,0]", r"data\.std=\[0, 0, 0\] must have numbers above 0"),
        ("defence.noise.scale=1", r"defence\.noise\.scale is an option of .*: add defence=noise$"),
        (
            "defence=drop defence.noise.scale=1",
            r"defence\.noise\.scale is an option of .*: add defence=\[drop,noise\]$",
        ),
        ("foo=1", r"foo is unknown: ((?!_target_).)*$"),
    ],
)
def test_a_mistake_says_what_to_do(words, sentence):
    with pytest.raises(UserError, match=f"^{sentence}"):
        checks.check(compose(*words.split()))


def test_held_out_part_must_be_a_part():
    with pytest.raises(UserError, match=r"^data\.test_fraction=1\.0 must be at least 0 and below 1"):
        checks.check(compose("data=image_folder", "data.test_fraction=1.0"))


@pytest.mark.parametrize(
    "overrides, match",
    [
        (["num_clients=2", "membership.quorum=3"], r"^membership\.quorum=3 is more than num_clients=2"),
        (["num_clients=2", "membership.sample=3"], r"^membership\.sample=3 is more than num_clients=2"),
        (["membership.sample=3"], r"^membership\.sample=3 needs num_clients="),
        (
            ["num_clients=4", "membership.sample=2", "membership.open=true", "membership.quorum=3"],
            r"^membership\.quorum=3 is more than membership\.sample=2",
        ),
        (["membership.open=true", "topology=sequential"], r"^membership\.open=true .* use topology=parallel"),
        (["membership.open=true", "topology.average=step"], r"^membership\.open=true .* topology\.average=epoch"),
    ],
)
def test_membership_that_cannot_work_is_named(overrides, match):
    with pytest.raises(UserError, match=match):
        checks.check(compose(*overrides))


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        (["exchange=send_once", "epochs=20"], "exchange=send_once does not go with topology=sequential: use {}$"),
        (["exchange=update_by_loss"], "exchange=update_by_loss does not go with topology=sequential: use {}$"),
        (["+compressor@weights=uq"], "compressor@weights=uq does not go with topology=sequential: use {}, or "),
    ],
)
def test_what_needs_another_topology_names_the_choice_that_brings_its_options(overrides, match):
    with pytest.raises(UserError, match="^" + match.format("topology=parallel")):
        checks.check(compose("topology=sequential", *overrides))


@pytest.mark.parametrize("exchange", ["send_once", "update_by_loss"])
def test_an_exchange_whose_server_holds_the_samples_is_given_all_of_them(exchange):
    options = [f"exchange={exchange}", "epochs=20"]
    for overrides in (["samples_per_epoch=100"], ["task=causal_lm"]):
        with pytest.raises(UserError, match=rf"^exchange={exchange} does not go with .*: use samples_per_epoch=null$"):
            checks.check(compose(*overrides, *options))
        checks.check(compose(*overrides, *options, "samples_per_epoch=null"))


def test_mistake_in_downlink_is_named():
    with pytest.raises(UserError, match=r"^downlink\.ratio=1\.0 is out of range"):
        checks.check(compose("compressor@downlink=sp", "downlink.ratio=1"))


@pytest.mark.parametrize("key", ["features", "feature_gradient"])
def test_mistake_in_an_exchanges_own_channels_is_named(key):
    with pytest.raises(UserError, match=rf"^{key}\.ratio=1\.0 is out of range"):
        checks.check(compose("exchange=u_shaped", f"compressor@{key}=sp", f"{key}.ratio=1"))


@pytest.mark.parametrize(
    "overrides",
    [["num_clients=1"], ["num_clients=32"], ["rpc.timeout_s=0.5"], ["compressor.ratio=0"], ["role=client"]],
    ids=" ".join,
)
def test_ends_of_the_ranges_pass_check(overrides):
    checks.check(compose(*overrides))


@pytest.mark.parametrize(
    "name, count, expected",
    [
        ("cpu", 0, "cpu"),
        ("cpu", 2, "cpu"),
        ("auto", 0, "cpu"),
        ("auto", 2, "cuda"),
        ("cuda", 1, "cuda"),
        ("cuda:1", 2, "cuda:1"),
    ],
)
def test_device(name, count, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert config.device_from(name, "client.device") == torch.device(expected)


@pytest.mark.parametrize(
    "name, count", [("cuda", 0), ("cuda:99", 0), ("cuda:99", 2), ("quatsch", 2), ("meta", 2), ("cuda:x", 2)]
)
def test_missing_device_is_named(name, count, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(UserError, match=rf"^server\.device={name}\b"):
        config.device_from(name, "server.device")


def test_shared_leaves_out_each_ranks_own_keys():
    plain = config.shared(compose())
    own = config.shared(
        compose(
            *("role=client", "client.index=3", "client.device=cpu", "client.num_threads=2", "server.device=cpu"),
            *("server.num_threads=2", "rpc.host=10.0.0.1", "rpc.port=1", "rpc.timeout_s=5", "log.error_every=3"),
            *("data.root=elsewhere", "data.download=true", "data.num_workers=2"),
        )
    )
    assert own == plain
    assert not [key for key in plain if key.split(".")[0] in ("role", "client", "server", "rpc", "log")]
    assert not {"data.root", "data.download", "data.num_workers"} & plain.keys()


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "cut=deep",
        "data=cifar10",
        "data.image_size=16",
        "compressor.bits=3",
        "compressor@downlink=qu",
        "optimizer.lr=0.3",
        "topology=sequential",
        "exchange=u_shaped",
        "evaluate.every=2",
        "num_clients=3",
    ],
)
def test_shared_holds_what_all_ranks_must_agree_on(override):
    assert config.shared(compose(override)) != config.shared(compose())


def test_differences_name_keys_and_both_values():
    server, client = (config.shared(compose(f"epochs={epochs}", "seed=3")) for epochs in (5, 6))
    expected = "epochs (server 5, client 6), schedule.T_max (server 5 epochs, client 6 epochs)"
    assert config.differences(server, client, "server", "client") == expected


def test_differences_are_of_a_bounded_length_and_on_one_line():
    found = config.differences({"a": 1}, {"a": "x\n\x1b[31m" + "y" * 1000}, "server", "client")
    assert found.startswith("a (server 1, client x\\n\\x1b[31my") and found.endswith("y…)") and len(found) < 250


def test_differences_name_keys_that_only_one_side_has():
    assert (
        config.differences({"a": 1, "b": 2}, {"a": 1, "c": 3}, "server", "client")
        == "b (server 2, client None), c (server None, client 3)"
    )


def test_differences_of_equal_configurations_are_empty():
    assert (
        config.differences(config.shared(compose("seed=1")), config.shared(compose("seed=1")), "server", "client") == ""
    )


@pytest.mark.parametrize("schedule", [choice for group, choice in CHOICES if group == "schedule"])
@pytest.mark.parametrize("optimizer", [choice for group, choice in CHOICES if group == "optimizer"])
def test_optimizer_and_schedule_train_a_segment(optimizer, schedule):
    cfg = compose(f"optimizer={optimizer}", f"schedule={schedule}")
    trainable, rates = Trainable(nn.Linear(2, 2), cfg), Rates(cfg, num_steps=10)
    before = trainable.segment.weight.detach().clone()
    trainable.segment(torch.ones(1, 2)).sum().backward()
    trainable.collect(1.0)
    trainable.step(rates.at(1, 0))
    assert (trainable.segment.weight < before).all()
    assert 0 < trainable.optimizer.param_groups[0]["lr"] <= cfg.optimizer.lr


@pytest.mark.parametrize("optimizer, lr", [("sgd", 0.05), ("adam", 1e-3)])
@pytest.mark.parametrize(
    "schedule, epochs, factor",
    [
        ("constant", 100, 1),
        ("step", 29, 1),
        ("step", 30, 0.1),
        ("step", 59, 0.1),
        ("step", 60, 0.01),
        ("multistep", 59, 1),
        ("multistep", 60, 0.2),
        ("multistep", 119, 0.2),
        ("multistep", 120, 0.04),
        ("multistep", 160, 0.008),
        ("cosine", 10, (1 + math.cos(math.pi / 3)) / 2),
        ("cosine", 15, 0.5),
        ("cosine", 30, 0),
    ],
)
def test_learning_rate_after_epochs(schedule, epochs, factor, optimizer, lr):
    rates = Rates(compose(f"schedule={schedule}", f"optimizer={optimizer}", "epochs=30"), num_steps=10)
    assert rates.at(epochs + 1, 0)["lr"] == pytest.approx(lr * factor, rel=1e-9, abs=1e-12)
    assert rates.at(epochs + 1, 9)["lr"] == rates.at(epochs + 1, 0)["lr"]
