"""Evaluates a run's network on its test set: through its compressors, as in the run, and without compression.

Then, as configured: each client's accuracy, and which classes were taken for which. Where each client has a segment of
its own, it is tested with that one, or all are with the one of --client.

    python scripts/evaluate.py outputs/2026-01-31/12-00-00
    python scripts/evaluate.py outputs/2026-01-31/12-00-00 data.root=/data/cifar10 compressor=ms_best

With --best it is the network of the best evaluation, which checkpoint.best=true keeps. Overrides, as for launch.py,
come after what the run was started with, and do not change its network, but for the precision that it computes in. A
run that has not finished gives its last checkpoint. The batches are the run's own, each client's after the other's:
what a compressor makes of a sample may depend on which others share its batch.
"""

import argparse
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from script import start
from tables import markdown
from torch import Tensor

from splitlearn import checks, saved
from splitlearn.compose import compose
from splitlearn.config import differences, shared
from splitlearn.errors import UserError
from splitlearn.exchange.channels import Channel, channels_of, know
from splitlearn.exchange.codecs import Codecs
from splitlearn.exchange.exchange import Exchange, Outcome, converse, exchange_from
from splitlearn.exchange.halves import client_half, server_half
from splitlearn.exchange.network import Network
from splitlearn.exchange.passage import Passage
from splitlearn.measure.evaluation import by_class, confusion_of, evaluation_of, told_apart
from splitlearn.started import WORDS, Start
from splitlearn.tasks import Metric, Task, task_from
from splitlearn.tasks.loading import source
from splitlearn.tasks.task import ClientData
from splitlearn.topologies import topology_from

# What makes the network, and says what goes through it.
OF_NETWORK = ("arch", "cut", "cut_back", "bottleneck", "exchange", "lora", "task", "freeze")
OF_NETWORK += ("data.image_size", "data.max_length")
PRECISION = ("precision", "cut_precision")  # with another, it is the same network
MOST_CLASSES = 30  # in a matrix
MOST_MISTAKES = 20


@dataclass
class Tested:
    """What a test set came to by one set of channels.

    Attributes:
        outcomes: one a batch, with its client.
        codec: of the exchange's first channel, in words.
        num_bytes: of the payloads, both ways.
    """

    outcomes: list[tuple[int, Outcome]]
    codec: str
    num_bytes: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("--client", type=int, help="whose segment, where each has its own; default: each client's own")
    parser.add_argument("--best", action="store_true", help="the weights of the best evaluation (checkpoint.best=true)")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_intermixed_args()

    run = saved.load(arguments.run, arguments.client, arguments.best)
    cfg = overridden(run.cfg, arguments.run, arguments.overrides)
    run.cfg = OmegaConf.merge(run.cfg, OmegaConf.masked_copy(cfg, PRECISION))
    task, exchange, network = task_from(cfg), exchange_from(cfg), run.network()
    clients = saved.test_data(task, cfg, run.about)
    task.know(task.tested(run.about, [data.about for data in clients]))
    are_all_here = len(clients) == run.cfg.num_clients  # else nothing says whose data these are
    has_own = arguments.client is None and topology_from(run.cfg).keeps_own and are_all_here
    segments = run.clients if has_own else dict.fromkeys(range(len(clients)), run.client)
    plain = OmegaConf.merge(cfg, {"evaluate": {"compressed": False}})
    ways = {}
    for title, setting in {"as configured": cfg, "no compression": plain}.items():
        channels = channels_of(setting, exchange)
        know(channels, network, setting)
        ways[title] = tested(network, segments, channels, exchange, task, clients, cfg.batch_size)
    if not any(way.outcomes for way in ways.values()):
        raise UserError(f"{source(cfg.data)} holds no test samples: give another")
    found = {title: evaluation_of(way.outcomes, None, task) for title, way in ways.items()}

    its = found["as configured"]
    name, of_data = task.headline(cfg)
    of = f", bottleneck={cfg.bottleneck}" if cfg.get("bottleneck") else ""
    client = next(iter(run.clients)) if arguments.client is None else arguments.client
    whose = ", each client's with its own segment" if has_own else f", with the segment of client {client}"
    whose *= len(run.clients) > 1
    print(f"{name} cut={cfg.cut}{of} after step {run.step}, {its['samples']:,} test samples of {of_data}{whose}\n")
    titles = [metric.title for metric in task.metrics]
    rows = [
        [title, way.codec, *forms(found[title], task.metrics), f"{found[title]['loss']:.4f}", a_sample(way, its)]
        for title, way in ways.items()
    ]
    print(markdown(["", exchange.channels[0].title, *titles, "loss", "bytes a sample"], rows))
    if len(its["by_client"]) > 1:
        rows = [[one, f"{own['samples']:,}", *forms(own, task.metrics)] for one, own in its["by_client"].items()]
        print("\n" + markdown(["client", "test samples", *titles], rows))
    names, pairs = task.class_names(run.about), told_apart(one for _, one in ways["as configured"].outcomes)
    if names and pairs is not None:
        confusion = confusion_of(pairs, len(names))
        of_confusion = {} if confusion is None else task.of_confusion(confusion)
        for metric in task.confusion_metrics if of_confusion else ():
            print(f"\n{metric.title} {metric.form(of_confusion[metric.name])}")
        print("\n" + confusion_table(pairs, confusion, names))


def overridden(cfg: DictConfig, folder: Path, overrides: list[str]) -> DictConfig:
    """A run's configuration with overrides after those that it was started with, and with as many clients.

    Raises:
        UserError: its folder does not say what it was started with, or they are of another network.
    """
    if not overrides:
        return cfg
    if not (folder / WORDS).exists():
        raise UserError(f"overrides need {folder / WORDS}, with what the run was started with, and it is not there")
    begun = Start.of(folder)
    own = compose(*begun.then(overrides))
    checks.check(own)
    before = compose(*begun.then([word for word in overrides if word.startswith("hydra.searchpath=")]))
    if changed := differences(*map(_of_network, (before, own)), "the run has", "here"):
        raise UserError(f"{folder} is evaluated with the network that it has trained: leave out {changed}")
    return OmegaConf.merge(own, {"num_clients": cfg.num_clients})


def _of_network(cfg: DictConfig) -> dict[str, object]:
    prefixes = tuple(f"{key}." for key in OF_NETWORK)
    return {key: value for key, value in shared(cfg).items() if f"{key}.".startswith(prefixes)}


@torch.no_grad()
def tested(
    network: Network,
    segments: dict[int, dict[str, Tensor]],
    channels: dict[str, Channel],
    exchange: Exchange,
    task: Task,
    clients: list[ClientData],
    batch_size: int,
) -> Tested:
    """The test samples of each client that there is a segment of, through it, the rest, and the channels' codecs."""
    outcomes, num_bytes = [], 0
    for client, segment in segments.items():
        network.client.load_state_dict(segment)
        data = clients[client]
        both = Codecs(channels, "up"), Codecs(channels, "down")
        for batch in data.test:
            inputs, targets = task.to_device(batch, torch.device("cpu"))
            ends = [
                Passage(codecs, (), inputs.device, "the other end", batch_size, in_evaluation=True) for codecs in both
            ]
            outcome = converse(
                client_half(exchange, network.client, ends[0], task, inputs, targets),
                server_half(exchange, network.server, ends[1], task),
            )
            outcomes.append((client, outcome))
            num_bytes += sum(transfer.num_bytes for transfer in ends[1].transfers)
    codec = both[0].of(channels[exchange.channels[0].name], in_evaluation=True)
    return Tested(outcomes, codec.label, num_bytes)


def forms(evaluation: dict[str, Any], metrics: tuple[Metric, ...]) -> list[str]:
    return [metric.form(evaluation[metric.name]) for metric in metrics]


def a_sample(way: Tested, evaluation: dict[str, Any]) -> str:
    return f"{way.num_bytes / evaluation['samples']:,.0f}"


def confusion_table(pairs: Tensor, confusion: Tensor | None, names: list[str]) -> str:
    """Samples of each class (row) by what they were taken for (column); of many classes the most frequent mistakes."""
    if len(names) <= MOST_CLASSES:
        shares = by_class(pairs, names)
        rows = [
            [name, *(str(count) if count else "·" for count in row), f"{shares[name]:.1%}" if name in shares else "–"]
            for name, row in zip(names, confusion.tolist(), strict=True)
        ]
        return markdown(["is \\ taken for", *names, "right"], rows)
    wrong = Counter((truth, taken_for) for truth, taken_for in pairs.tolist() if truth != taken_for)
    rows = [[names[truth], names[taken_for], str(n)] for (truth, taken_for), n in wrong.most_common(MOST_MISTAKES)]
    return markdown(["is", "taken for", "samples"], rows)


if __name__ == "__main__":
    start(main)
