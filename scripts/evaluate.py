"""Evaluates a run's network on its test set: through its compressors, as in the run, and without compression.

Then, as configured: each client's accuracy, and which classes were taken for which.

    python scripts/evaluate.py outputs/2026-01-31/12-00-00
    python scripts/evaluate.py outputs/2026-01-31/12-00-00 data.root=/data/cifar10 compressor=ms_best

With --best it is the network of the best evaluation, which checkpoint.best=true keeps. Overrides, as for launch.py,
come after what the run was started with. A run that has not finished gives its last checkpoint. The batches are the
run's own, each client's after the other's: what a compressor makes of a sample may depend on which others share its
batch.
"""

import argparse
from collections import Counter
from pathlib import Path

import torch
from omegaconf import OmegaConf
from script import start
from tables import markdown

from splitlearn.measure.evaluation import by_class, confusion_of, evaluation_of, told_apart

MOST_CLASSES = 30  # in a matrix
MOST_MISTAKES = 20


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("--client", type=int, default=0, help="whose segment, where each client has its own")
    parser.add_argument("--best", action="store_true", help="the weights of the best evaluation (checkpoint.best=true)")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()

    from splitlearn import saved
    from splitlearn.compose import compose
    from splitlearn.errors import UserError
    from splitlearn.exchange.channels import channels_of, know
    from splitlearn.exchange.codecs import Codecs
    from splitlearn.exchange.exchange import converse, exchange_from
    from splitlearn.exchange.passage import Passage
    from splitlearn.tasks import task_from
    from splitlearn.words import readable

    run = saved.load(arguments.run, arguments.client, arguments.best)
    cfg = run.cfg
    if arguments.overrides:
        started_with = arguments.run / ".hydra" / "overrides.yaml"
        if not started_with.exists():
            raise UserError(f"overrides need {started_with}, with what the run was started with, and it is not there")
        before = OmegaConf.load(started_with)
        cfg = OmegaConf.merge(compose(*before, *readable(arguments.overrides)), {"num_clients": cfg.num_clients})
    task, exchange, network = task_from(cfg), exchange_from(cfg), run.network()
    tested = saved.test_data(task, cfg)
    task.know(task.tested(run.about, [data.about for data in tested]))
    plain = OmegaConf.merge(cfg, {"evaluate": {"compressed": False}})
    ways = {"as configured": channels_of(cfg, exchange), "no compression": channels_of(plain, exchange)}
    rows, by_client, pairs, first = [], [], None, exchange.channels[0].name
    names = task.class_names(run.about)
    for title, channels in ways.items():
        know(channels, network, cfg)
        num_bytes = 0
        outcomes = []
        for client, data in enumerate(tested):
            both = Codecs(channels, "up"), Codecs(channels, "down")
            for batch in data.test:
                inputs, targets = task.to_device(batch, torch.device("cpu"))
                ends = [
                    Passage(codecs, (), inputs.device, "the other end", cfg.batch_size, in_evaluation=True)
                    for codecs in both
                ]
                outcome = converse(
                    exchange.client_evaluation(network.client, ends[0], task, inputs, targets),
                    exchange.server_evaluation(network.server, ends[1], task),
                )
                outcomes.append((client, outcome))
                num_bytes += sum(transfer.num_bytes for transfer in ends[1].transfers)
        if not outcomes:
            raise UserError(
                f"data={cfg.data.name} has no test samples at data.root={cfg.data.get('root')}: give another data.root"
            )
        found = evaluation_of(outcomes, None, task)
        num_samples = found["samples"]
        figures = [metric.form(found[metric.name]) for metric in task.metrics]
        if not by_client:
            by_client, pairs = found["by_client"], told_apart(one for _, one in outcomes)
        codec = ends[0].codecs.of(channels[first], in_evaluation=True).label
        rows.append([title, codec, *figures, f"{found['loss']:.4f}", f"{num_bytes / num_samples:,.0f}"])
    name, of_data = task.headline(cfg)
    of = f", bottleneck={cfg.bottleneck}" if cfg.get("bottleneck") else ""
    print(f"{name} cut={cfg.cut}{of} after step {run.step}, {num_samples:,} test samples of {of_data}\n")
    titles = [metric.title for metric in task.metrics]
    print(markdown(["", exchange.channels[0].title, *titles, "loss", "bytes a sample"], rows))
    if len(by_client) > 1:
        rows = [
            [client, f"{its['samples']:,}", *(metric.form(its[metric.name]) for metric in task.metrics)]
            for client, its in by_client.items()
        ]
        print("\n" + markdown(["client", "test samples", *titles], rows))
    if names and pairs is not None:
        confusion = confusion_of(pairs, len(names))
        of_confusion = {} if confusion is None else task.of_confusion(confusion)
        for metric in task.confusion_metrics if of_confusion else ():
            print(f"\n{metric.title} {metric.form(of_confusion[metric.name])}")
        print("\n" + confusion_table(pairs, names))


def confusion_table(pairs: torch.Tensor, names: list[str]) -> str:
    """Samples of each class (row) by what they were taken for (column); of many classes the most frequent mistakes."""
    if len(names) <= MOST_CLASSES:
        shares, confusion = by_class(pairs, names), confusion_of(pairs, len(names))
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
