"""Evaluates a run's network on its test set: through its compressors, as in the run, and without compression.

    python scripts/evaluate.py outputs/2026-01-31/12-00-00
    python scripts/evaluate.py outputs/2026-01-31/12-00-00 data.root=/data/cifar10 compressor=ms_best

Overrides, as for launch.py, come after what the run was started with. A run that has not finished gives its last
checkpoint. The batches are the run's own, each client's after the other's: what a compressor makes of a sample may
depend on which others share its batch.
"""

import argparse
import os
import sys
from collections import Counter
from pathlib import Path

import torch
from omegaconf import OmegaConf
from tables import markdown


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("--client", type=int, default=0, help="whose segment, where each client has its own")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()

    sys.path.append(os.getcwd())  # where a user's own data set or network is, as in launch.py
    from splitlearn import saved
    from splitlearn.compose import compose
    from splitlearn.errors import UserError
    from splitlearn.exchange.exchange import channels_of, converse, exchange_from, know
    from splitlearn.exchange.passage import Passage
    from splitlearn.tasks import task_from

    try:
        run = saved.load(arguments.run, arguments.client)
        cfg = run.cfg
        if arguments.overrides:
            before = OmegaConf.load(arguments.run / ".hydra" / "overrides.yaml")
            cfg = OmegaConf.merge(compose(*before, *arguments.overrides), {"num_clients": cfg.num_clients})
        task, exchange, network = task_from(cfg), exchange_from(cfg), run.network()
        if cfg.evaluate.get("on") == "server":
            loaders = [task.load_test(cfg).test]
        else:
            one_by_one = [task.load(cfg, client, cfg.num_clients) for client in range(cfg.num_clients)]
            is_own = one_by_one[0].origin and one_by_one[0].origin.is_own  # then there are only those that are here
            loaders = [data.test for data in one_by_one[: 1 if is_own else None]]
        plain = OmegaConf.merge(cfg, {"evaluate": {"compressed": False}})
        ways = {"as configured": channels_of(cfg, exchange), "no compression": channels_of(plain, exchange)}
    except UserError as error:
        sys.exit(str(error))
    rows, first = [], exchange.channels[0].name
    for way, channels in ways.items():
        know(channels, network, cfg)
        totals, num_samples, num_bytes = Counter(), 0, 0
        for loader in loaders:
            for batch in loader:
                inputs, targets = task.to_device(batch, torch.device("cpu"))
                ends = [
                    Passage(channels, (), inputs.device, "the other end", cfg.batch_size, in_evaluation=True)
                    for _ in range(2)
                ]
                outcome = converse(
                    exchange.client_evaluation(network.client, ends[0], task, inputs, targets),
                    exchange.server_evaluation(network.server, ends[1], task),
                )
                totals.update(outcome.sums)
                num_samples += outcome.num_samples
                num_bytes += sum(transfer.num_bytes for transfer in ends[1].transfers)
        figures = [metric.form(totals[metric.name] / num_samples) for metric in task.metrics]
        codec = channels[first].evaluation_codec.label
        rows.append([way, codec, *figures, f"{totals['loss'] / num_samples:.4f}", f"{num_bytes / num_samples:,.0f}"])
    name, data = task.headline(cfg)
    print(f"{name} cut={cfg.cut} after step {run.step}, {num_samples:,} test samples of {data}\n")
    titles = [metric.title for metric in task.metrics]
    print(markdown(["", exchange.channels[0].title, *titles, "loss", "bytes a sample"], rows))


if __name__ == "__main__":
    main()
