"""The task of a language model: what it measures, what it takes from others, and a run of it."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from runs import LAUNCH, ROOT, metrics, run, summary
from simulation import compose

from splitlearn import local, saved
from splitlearn.errors import UserError
from splitlearn.exchange import network
from splitlearn.exchange.agreement import Agreement, Unfit
from splitlearn.exchange.channels import channels_of, know
from splitlearn.exchange.exchange import exchange_from
from splitlearn.exchange.labels_up import Smashed
from splitlearn.roles.progress import Progress
from splitlearn.roles.verdict import Verdict
from splitlearn.segments.adamw import AdamW
from splitlearn.segments.trainable import Trainable
from splitlearn.tasks import CausalLM, task_from
from splitlearn.tasks.language.gpt import GPT, generate

TINY = ["task=causal_lm", "arch.depth=3", "arch.width=16", "arch.heads=2", "task.context=8", "batch_size=8"]
RUN = [*TINY, "num_clients=2", "data.max_train_samples=40", "data.max_test_samples=12", "task.sample_bytes=20"]
TASK = CausalLM(context=8)
ABOUT = {"vocab_size": 256, "tokenizer": "bytes", "context": 8, "bytes_per_token": 1.0, "test_tokens": 24}
TARGETS = torch.arange(24, dtype=torch.uint8).view(3, 8)


# What is measured


def test_the_loss_is_the_mean_over_tokens(noise):
    outputs, targets = noise(3, 8, 256), torch.randint(256, (3, 8), generator=torch.Generator().manual_seed(0))
    expected = -outputs.log_softmax(2).gather(2, targets.unsqueeze(2)).mean()
    assert torch.allclose(TASK.loss(outputs, targets), expected)
    smoothed = CausalLM(context=8, label_smoothing=0.3).loss(outputs, targets)
    assert torch.allclose(smoothed, 0.7 * expected - 0.3 * outputs.log_softmax(2).mean())
    assert TASK.loss(outputs.bfloat16(), targets).dtype == torch.float32


def test_perplexity_is_of_the_mean_over_all_samples(noise):
    outputs, targets = noise(6, 8, 256), torch.zeros(6, 8, dtype=torch.long)
    names = [*TASK.evaluated]
    parts = [TASK.score(*(x[part] for x in (outputs, targets)), names) for part in (slice(2), slice(2, 6))]
    found = TASK.means({name: parts[0][name] + parts[1][name] for name in names}, 6)
    loss = F.cross_entropy(outputs.flatten(0, 1), targets.flatten()).item()
    assert found["loss"] == pytest.approx(loss) and found["perplexity"] == pytest.approx(math.exp(loss))
    assert found["bits_per_byte"] == pytest.approx(loss / math.log(2))
    assert found["accuracy"] == pytest.approx((outputs.argmax(2) == 0).float().mean().item())
    assert TASK.metrics[0].name == "perplexity" and not TASK.metrics[0].higher_is_better
    assert math.isfinite(TASK.means({"perplexity": 1e9}, 1)["perplexity"])  # JSON has no infinity


@pytest.mark.parametrize("results, ends", [([9, 8, 8.5, 7, 7.2, 7.1], [False] * 5 + [True]), ([9, 8.9, 8.8], None)])
def test_a_run_ends_early_where_perplexity_does_not_fall(results, ends):
    cfg = compose("task=causal_lm", "early_stopping.patience=2", "early_stopping.min_delta=0.2")
    server = SimpleNamespace(cfg=cfg, task=TASK, progress=Progress(), recorder=SimpleNamespace(result=None))
    verdict, found = Verdict(server), []
    for result in results:
        server.recorder.result = result
        found.append(verdict._has_enough())
    assert found == (ends or [False, False, True])


# What others say and send


@pytest.mark.parametrize("number, dtype", [(256, torch.uint8), (257, torch.uint16), (1 << 16, torch.uint16)])
def test_targets_cross_in_the_smallest_dtype(number, dtype):
    targets = torch.full((2, 8), number - 1)
    packed = TASK.pack(targets)
    TASK.check_targets(packed, ABOUT | {"vocab_size": number}, 4)
    assert packed.dtype == dtype and torch.equal(TASK.unpack(packed, torch.device("cpu")), targets)
    assert TASK.pack(torch.tensor([[1 << 16]])).dtype == torch.int32


@pytest.mark.parametrize(
    "targets, expected",
    [
        (None, "no tensor of tokens"),
        ([1, 2], "no tensor of tokens"),
        (TARGETS.float(), "no tensor of tokens"),
        (TARGETS.long(), "no tensor of tokens"),
        (TARGETS.bool(), "no tensor of tokens"),
        (TARGETS.to_sparse(), "no plain tensor"),
        (TARGETS.to("meta"), "no plain tensor"),
        (TARGETS[0], "shape 8, where"),
        (TARGETS[:, :7], "shape 3×7, where a batch has 1 to 4 windows of 8 tokens"),
        (TARGETS.view(3, 8, 1), "shape 3×8×1, where"),
        (TARGETS[:0], "shape 0×8, where"),
        (TARGETS.repeat(2, 1), "shape 6×8, where"),
        (-TARGETS.int(), "from -23 to 0; there are 256 tokens"),
        (TARGETS.int() + 250, "from 250 to 273; there are 256 tokens"),
    ],
)
def test_malformed_targets_are_refused(targets, expected):
    with pytest.raises(ValueError, match=expected):
        TASK.check_targets(targets, ABOUT, 4)


def test_an_exchange_refuses_them_before_anything_is_computed():
    cfg = compose(*TINY, "exchange=labels_up", "batch_size=4")
    task, channels = task_from(cfg), channels_of(cfg, exchange_from(cfg))
    built = network.build(cfg, ABOUT)
    know(channels, built, cfg)
    agreement = Agreement(cfg, task, channels)
    agreement.know(built.client, ABOUT)
    wire = torch.zeros(9, dtype=torch.uint8)
    assert Smashed.parse((wire, TARGETS), agreement).targets is TARGETS
    with pytest.raises(Unfit, match="from 250 to 273"):
        Smashed.parse((wire, TARGETS.int() + 250), agreement)


@pytest.mark.parametrize(
    "change, expected",
    [
        ({"vocab_size": 0}, "vocab_size is not a number"),
        ({"vocab_size": 1 << 40}, "vocab_size is not a number"),
        ({"vocab_size": 256.0}, "vocab_size is not a number"),
        ({"tokenizer": 3}, "no word"),
        ({"tokenizer": "a" * 65}, "no word"),
        ({"context": 9}, "windows do not have 8 tokens"),
        ({"bytes_per_token": math.nan}, "bytes_per_token"),
        ({"bytes_per_token": 0.0}, "bytes_per_token"),
        ({"test_tokens": -1}, "test_tokens"),
        ({"test_tokens": 24.0}, "test_tokens"),
        ({"more": 1}, "nothing else"),
    ],
)
def test_what_data_are_not_like(change, expected):
    TASK.check_about(ABOUT)
    with pytest.raises(ValueError, match=expected):
        TASK.check_about(ABOUT | change)
    with pytest.raises(ValueError):
        TASK.check_about("text")


def test_clients_need_one_tokenizer():
    other = ABOUT | {"tokenizer": "a1b2", "vocab_size": 300}
    assert TASK.disagreement(ABOUT, ABOUT | {"bytes_per_token": 3.0}) is None
    expected = "it has another tokenizer, a1b2 (300 tokens) instead of bytes (256 tokens): set data.tokenizer to"
    assert TASK.disagreement(ABOUT, other).startswith(expected)


def test_bytes_of_what_is_evaluated_are_those_of_all_clients_or_the_servers():
    many, none = ABOUT | {"bytes_per_token": 3.0, "test_tokens": 72}, ABOUT | {"test_tokens": 0}
    together = TASK.together([ABOUT, many, none])
    assert (together["bytes_per_token"], together["test_tokens"]) == ((24 + 3 * 72) / 96, 96)
    own = TASK.tested(TASK.together([none, none]), [many])
    assert (own["bytes_per_token"], own["test_tokens"]) == (3.0, 72)
    for about in (together, own, TASK.together([none])):
        TASK.check_about(about)


# The network


def test_no_position_sees_a_later_one():
    torch.manual_seed(0)
    model, tokens = GPT(11, 8, depth=2, width=16, heads=2).eval(), torch.randint(11, (2, 8))
    outputs = model(tokens)
    assert outputs.shape == (2, 8, 11)
    for place in range(8):
        changed = tokens.clone()
        changed[:, place] = (changed[:, place] + 1) % 11
        same = torch.isclose(model(changed), outputs).all(2).all(0)
        assert same[:place].all() and not same[place]
    assert torch.allclose(model(tokens[:, :5]), outputs[:, :5], atol=1e-6)


@pytest.mark.parametrize(
    "overrides, paths",
    [
        ([], ["blocks.0", "blocks.2"]),  # the last norm and the head are the client's
        (["cut=0"], ["embedding", "blocks.2"]),
        (["cut=2", "cut_back=norm"], ["blocks.1", "norm"]),
        (["cut=[1,2]"], ["blocks.0", "blocks.1"]),
        (["exchange=labels_up", "cut=3"], ["blocks.2"]),
        (["exchange=labels_up", "cut=norm"], ["norm"]),
        (["exchange=labels_up", "cut=deep"], ["blocks.1"]),
        (["exchange=labels_up", "arch.depth=8", "cut=shallow"], ["blocks.1"]),
        (["arch.depth=1"], ["embedding", "blocks.0"]),
        (["arch.dropout=0.1"], ["blocks.0", "blocks.2"]),
    ],
)
def test_it_can_be_cut_after_each_block(overrides, paths):
    built = network.build(compose(*TINY, *overrides), ABOUT)
    assert [cut.path for cut in built.cuts] == paths
    x = torch.randint(256, (4, 8))
    built.model.eval()
    parts = [part.eval() for _, part in built.parts()]
    y = x
    for part in parts:
        y = part(y)
    assert torch.equal(y, built.model(x))
    if len(parts) == 3:
        assert {name.partition(".")[0] for name, _ in parts[2].named_parameters()} >= {"head"}


@pytest.mark.parametrize(
    "overrides, expected",
    [
        ([*TINY, "cut=9"], "cut=9 is after block 9, and there are 3 blocks; 0 is before the first"),
        ([*TINY, "cut=-1"], "cut=-1 is not possible: no module has this path. Valid cuts: embedding, blocks.0"),
        ([*TINY, "arch.heads=3"], "arch.width=16 must be a multiple of heads=3"),
        ([*TINY, "+arch.experts=3"], "arch=gpt does not take these options: .*experts"),
        (
            ["task=causal_lm", "arch=convnet"],
            "arch=convnet takes images: task=causal_lm needs a network of tokens",
        ),
        (["task=causal_lm", "data=digits"], "data=digits is no text: task=causal_lm needs shakespeare or text"),
        (["data=shakespeare"], "data=shakespeare has no images: task=causal_lm learns"),
    ],
)
def test_what_does_not_fit_is_one_sentence(overrides, expected):
    cfg = compose(*overrides)
    with pytest.raises(UserError, match=expected):
        task_from(cfg).check(cfg)
        network.check(cfg)


def test_everything_that_the_task_brings_can_be_set():
    cfg = compose("task=causal_lm", "optimizer=sgd", "exchange=labels_up", "epochs=9", "data=text", "arch.depth=2")
    assert (cfg.arch.name, cfg.data.name, cfg.epochs, cfg.clip_norm) == ("gpt", "text", 9, 1.0)
    assert cfg.optimizer._target_ == "torch.optim.SGD" and cfg.exchange._target_.endswith("LabelsUp")
    assert compose("task=causal_lm").exchange._target_.endswith("UShaped")


def test_text_is_drawn_from_what_the_network_says():
    class Next(torch.nn.Module):
        """Says that the token after n is n+1, or with some luck n+2; looks at four at most."""

        def forward(self, tokens):
            assert tokens.shape[1] <= 4
            scores = torch.full((*tokens.shape, 50), -math.inf)
            scores.scatter_(2, (tokens.unsqueeze(2) + 1) % 50, 1.0).scatter_(2, (tokens.unsqueeze(2) + 2) % 50, 0.0)
            return scores

    prompt = torch.tensor([3, 4])
    assert generate(Next(), prompt, 6, 4, temperature=0).tolist() == [5, 6, 7, 8, 9, 10]
    drawn = [generate(Next(), prompt, 6, 4, seed=seed).tolist() for seed in (0, 0, 1, 2)]
    assert drawn[0] == drawn[1] and len(set(map(tuple, drawn))) > 1
    assert all(b - a in (1, 2) for tokens in drawn for a, b in zip([4, *tokens], tokens, strict=False))


@pytest.mark.parametrize("exchange", ["labels_up", "u_shaped"])
@pytest.mark.parametrize("cut_precision, expected", [("null", torch.bfloat16), ("fp32", torch.float32)])
def test_what_crosses_is_in_the_precision_that_is_asked_for(exchange, cut_precision, expected):
    cfg = compose(*TINY, "codecs=bf16", f"exchange={exchange}", f"cut_precision={cut_precision}")
    built, channels = network.build(cfg, ABOUT), channels_of(cfg, exchange_from(cfg))
    know(channels, built, cfg)
    assert {channel.dtype for channel in channels.values()} == {expected}
    x = built.example
    for side, part in built.parts()[:-1]:
        x = side.run(part, x)  # which autocast leaves in float32, as blocks add to it
        assert x.dtype == expected


# The optimizer


@pytest.mark.parametrize("decay", ["matrices", "all"])
def test_norms_and_biases_do_not_decay(decay):
    layers = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3))
    before = copy.deepcopy(layers.state_dict())
    optimizer = AdamW(layers.parameters(), decay, lr=0.1, weight_decay=0.5)
    for parameter in layers.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, value in layers.state_dict().items():
        factor = 0.95 if decay == "all" or value.dim() == 2 else 1
        assert torch.allclose(value, factor * before[name]), name


def test_what_an_optimizer_of_groups_keeps_is_agreed_on():
    cfg = compose(*TINY)
    built, channels = network.build(cfg, ABOUT), channels_of(cfg, exchange_from(cfg))
    know(channels, built, cfg)
    agreement, trainable = Agreement(cfg, task_from(cfg), channels), Trainable(built.client, cfg)
    agreement.know(built.client, ABOUT)
    for parameter in built.client.parameters():
        parameter.grad = torch.ones_like(parameter)
    trainable.collect(1.0)
    trainable.step({"lr": 0.5, "betas": (0.8, 0.9)})
    assert [group["lr"] for group in trainable.optimizer.param_groups] == [0.5, 0.5]
    state = trainable.state()
    agreement.check_trainable(state)
    other = Trainable(network.build(cfg, ABOUT).client, cfg)
    other.load(state)
    for one, same in zip(trainable.segment.parameters(), other.segment.parameters(), strict=True):
        mine, its = (side.optimizer.state[p] for side, p in ((trainable, one), (other, same)))
        assert all(torch.equal(mine[name], its[name]) for name in mine)


# A run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder of a run, and what it has shown."""
    folder = tmp_path_factory.mktemp("run") / "run"
    local.run(compose(*RUN, "epochs=3", "checkpoint.best=true", "optimizer.lr=0.02"), folder)
    return folder


def test_a_run_is_measured_in_perplexity(finished):
    found = summary(finished)
    evaluations = metrics(finished, "evaluation")
    assert found["test_perplexity"] == pytest.approx(math.exp(found["test_loss"])) and found["test_perplexity"] < 256
    assert found["best_test_perplexity"] == min(line["perplexity"] for line in evaluations)
    assert found["best_epoch"] == min(evaluations, key=lambda line: line["perplexity"])["epoch"]
    for line in [*metrics(finished, "step"), *metrics(finished, "epoch")]:
        assert line["perplexity"] == pytest.approx(math.exp(line["loss"]))
    assert found["vocab_size"] == 256 and found["tokenizer"] == "bytes"
    assert (found["bytes_per_token"], found["test_tokens"]) == (1.0, 12 * 8)  # of both clients
    assert found["test_bits_per_byte"] == pytest.approx(found["test_loss"] / math.log(2))
    assert found["other_bytes"]["labels_up"] == 0
    for client in ("0", "1"):
        assert found["by_client"][client]["perplexity"] == pytest.approx(math.exp(found["by_client"][client]["loss"]))


def test_a_server_with_its_own_test_knows_the_bytes_of_that(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0, "to": 1, "be": 2}, "?"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "texts.txt").write_text("to be " * 400)
    (tmp_path / "other.txt").write_text("something else " * 80)
    files = [f"data.root={tmp_path}/texts.txt", f"data.test_root={tmp_path}/other.txt", f"data.tokenizer={tmp_path}"]
    options = [*files, "num_clients=1", "epochs=1", "evaluate.on=server", "exchange=labels_up", "task.sample_bytes=0"]
    local.run(compose(*TINY, "data=text", *options), tmp_path / "run")
    found = summary(tmp_path / "run")
    assert found["bytes_per_token"] == pytest.approx(7.5, rel=0.02) and found["test_tokens"] == 160 // 9 * 8
    assert found["test_bits_per_byte"] == pytest.approx(found["test_loss"] / math.log(2) / found["bytes_per_token"])


def test_it_writes_text_again(finished, run_here):
    script = ROOT / "scripts" / "generate.py"
    first = run_here(script, str(finished), "ROMEO:", "--tokens", "30", "--seed", "4")
    again = run_here(script, str(finished), "ROMEO:", "--tokens", "30", "--seed", "4")
    assert first == again and first[0] == 0 and first[1].startswith("ROMEO:")
    kept = saved.load(finished)
    expected = task_from(kept.cfg).written(kept.cfg, kept.model(), "ROMEO:", 30, 0.8, 4)
    assert first[1] == f"ROMEO:{expected}\n"
    assert run_here(script, str(finished), "ROMEO:", "--tokens", "30", "--seed", "5") != first
    status, out = run_here(script, str(finished), "")
    assert (status, out) == ("the prompt has no token: give one or more letters", "")
    assert run_here(script, str(finished / "nowhere"), "ROMEO:")[0].endswith("holds no run: there is no config.yaml")


def test_it_can_be_evaluated_anew_and_exported(finished, run_here, tmp_path):
    status, out = run_here(ROOT / "scripts" / "evaluate.py", str(finished))
    assert status == 0 and "| perplexity |" in out and f"{summary(finished)['test_perplexity']:.4f}" in out
    status, out = run_here(ROOT / "scripts" / "export.py", str(finished), str(tmp_path / "gpt.pt"))
    model = GPT(256, 8, depth=3, width=16, heads=2)
    assert status == 0 and model.load_state_dict(torch.load(tmp_path / "gpt.pt"))


@pytest.mark.parametrize("exchange, number", [("labels_up", 1), ("u_shaped", 0)])
def test_a_server_that_sees_the_text_says_so(exchange, number):
    notes = network.build(compose(*TINY, f"exchange={exchange}"), ABOUT).notes
    assert len(notes) == number and all("the server sees all of it" in note for note in notes)


@pytest.mark.slow
def test_what_a_run_shows(tmp_path):
    overrides = [*RUN, "epochs=1", "exchange=labels_up", "hydra.run.dir=run", "log.tensorboard=false"]
    status, shown = run([*LAUNCH, *overrides], tmp_path)
    assert status == 0, shown
    assert shown.count("the targets are the text, and they are sent: the server sees all of it") == 1
    assert "256 different tokens (bytes), windows of 8" in shown and "test perplexity" in shown
    finished = saved.load(tmp_path / "run")
    assert shown.endswith(task_from(finished.cfg).demonstrate(finished.cfg, finished.model) + "\n")
    assert summary(tmp_path / "run")["other_bytes"]["labels_up"] == 8 * 40
