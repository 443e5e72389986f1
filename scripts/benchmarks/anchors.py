"""What needs no cut, as rows of a report beside the runs: federated averaging, and every image sent to the server once.

    python scripts/benchmarks/anchors.py fedavg --out multirun/cifar10/fedavg sweep=cifar10 data.root=data seed=0,1
    python scripts/benchmarks/anchors.py images --out multirun/cifar10/images sweep=cifar10 data.root=data seed=0,1

The overrides are those of the runs to compare with: network, start weights, data, partition, loaders, augmentation,
optimizer, schedule and evaluation are then theirs; exchange, cut and the codecs of maps and gradients do not matter.
Each seed has a folder below --out, which scripts/report.py reads with the sweep's. A training that was stopped goes on
after its last epoch.

fedavg: each client trains the whole network for an epoch of its own samples; then the mean of the weights goes to all
of them, as topology=parallel does it with client segments, by topology.weighting. Optimizers keep their state, as
there. What crosses, counted from the tensors: all that training changes, batch norm's statistics included, of each
client, up and down, each epoch; with compressor@weights, payloads of what it has changed, as there. Source: McMahan et
al. 2017, arXiv:1602.05629, with E=1.

images: before the first epoch the files of all training images go up, as they are on the disk (data=image_folder), with
their labels, and nothing crosses after that. The server then trains the uncut network on all of them, by batches as
large as those of all clients together, so that it takes as many steps. It is trained here, and no run's accuracy is
taken for it. It is what privacy costs: who may send the images needs no split learning.
"""

import argparse
import copy
import json
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from common import start
from omegaconf import DictConfig, OmegaConf
from report_labels import choice

from splitlearn import checks
from splitlearn.checkpoints import Checkpoints, write_texts
from splitlearn.compose import compose
from splitlearn.config import device_from, differences, is_due, shared
from splitlearn.errors import UserError
from splitlearn.exchange.changes import Weights, changes_of
from splitlearn.exchange.exchange import Outcome
from splitlearn.folder import held
from splitlearn.measure.display import epoch_line
from splitlearn.measure.evaluation import evaluation_of
from splitlearn.measure.ledger import Ledger, of_training
from splitlearn.measure.lines import Lines
from splitlearn.measure.tally import Tally
from splitlearn.rates import Rates
from splitlearn.roles.progress import share_of
from splitlearn.seeds import derive, start_from
from splitlearn.segments.parts import Parts
from splitlearn.segments.trainable import Trainable, nbytes_of, state_of
from splitlearn.tasks import task_from
from splitlearn.tasks.loading import of_server
from splitlearn.tasks.partition import file_of, source_of
from splitlearn.tasks.task import ClientData
from splitlearn.topologies.averaging import average_states
from splitlearn.worker import DEFAULT_NUM_CLIENTS

PLAIN = {  # what would make it another training than the runs', or how they go on or end
    "bottleneck": None,
    "freeze": None,
    "lora.rank": None,
    "init_from": None,
    "membership.sample": None,
    "membership.open": False,
    "topology.name": "parallel",
    "nonfinite": "stop",
    "early_stopping.patience": None,
}
WAYS = ("up", "down")


class Anchor:
    """Whole networks that are trained, one for each part of the data.

    Args:
        cfg: of the runs to compare with.

    Attributes:
        ledger: what has crossed.
    """

    @classmethod
    def method(cls, cfg: DictConfig) -> str:
        """What the report calls it."""
        raise NotImplementedError

    def __init__(self, cfg: DictConfig):
        self.cfg, self.task, self.ledger = cfg, task_from(cfg), Ledger(())
        self.own = self.of_trainees(cfg)
        self.data = [self.task.load(self.own, number, self.own.num_clients) for number in range(self.own.num_clients)]
        self.device = device_from(cfg.client.device, "client.device")
        about = self.task.together([data.about for data in self.data])
        self.tests = [(number, data.test) for number, data in enumerate(self.data)]
        if cfg.evaluate.get("on") == "server":
            own = of_server(self.task, cfg)
            self.tests, about = [(None, own.test)], self.task.tested(about, [own.about])
        self.task.know(about)
        network = self.task.network(cfg, about)
        for note in self.task.pretrain(cfg, network, about):
            print(note)
        whole = Parts([network.to(self.device)], cfg.precision)
        self.trainables = [Trainable(copy.deepcopy(whole), cfg) for _ in self.data]
        self.num_steps = max(-(-len(data.train) // cfg.accumulate) for data in self.data)
        self.rates = Rates(cfg, self.num_steps)

    def of_trainees(self, cfg: DictConfig) -> DictConfig:
        """The configuration that the data are shared out by."""
        return cfg

    def begin(self) -> None:
        """Books what crosses before the first epoch."""

    def end_epoch(self, epoch: int) -> None:
        """Books what crosses after an epoch, and gives all what they go on with."""

    def epoch(self, epoch: int) -> Tally:
        """All trainees' batches of an epoch; returns what they came to."""
        tally, rates = Tally(), [self.rates.at(epoch, step) for step in range(self.num_steps)]
        for number, (trainable, data) in enumerate(zip(self.trainables, self.data, strict=True)):
            data.train.batch_sampler.start_at(epoch)
            trainable.segment.train()
            for batch, loaded in enumerate(data.train, start=1):
                inputs, targets = self.task.to_device(loaded, self.device)
                start_from(derive(self.cfg.seed, "client", number, epoch, batch))  # dropout
                trainable.optimizer.zero_grad()
                outputs = trainable.segment(inputs, self.task.lengths(inputs))
                loss = self.task.loss(outputs, targets)
                if not loss.isfinite():
                    raise UserError(f"the loss is not finite in epoch {epoch}: training diverged; lower optimizer.lr")
                loss.backward()
                trainable.collect(share_of(batch, data.num_train, self.own))
                if batch % self.cfg.accumulate == 0 or batch == len(data.train):
                    trainable.step(rates[(batch - 1) // self.cfg.accumulate])
                sums = self.task.score(outputs, targets, self.task.train_metrics)
                tally.add(Outcome(self.task.num_samples(targets), sums, loss.item()))
        return tally

    @torch.no_grad()
    def evaluation(self) -> dict[str, Any]:
        """As a run's: over the test samples of all clients, or of the server."""
        segment, outcomes = self.trainables[0].segment.eval(), []
        for client, loader in self.tests:
            for loaded in loader:
                inputs, targets = self.task.to_device(loaded, self.device)
                outputs = segment(inputs, self.task.lengths(inputs))
                sums = self.task.score(outputs, targets, self.task.evaluated)
                outcomes.append((client, Outcome(self.task.num_samples(targets), sums)))
        if not outcomes:
            raise UserError("there are no test samples to evaluate with")
        return evaluation_of(outcomes, sum(outcome.num_samples for _, outcome in outcomes), self.task)

    def state(self) -> dict[str, Any]:
        return {"trainables": [one.state() for one in self.trainables], "ledger": self.ledger.state()}

    def load(self, state: dict[str, Any]) -> None:
        for trainable, its in zip(self.trainables, state["trainables"], strict=True):
            trainable.load(its)
        self.ledger.load(state["ledger"])


class FedAvg(Anchor):
    def __init__(self, cfg):
        super().__init__(cfg)
        self.coders = [changes_of(cfg) for _ in range(len(self.data) + 1)]  # of each client, and the server's
        self.average, trained = self._weights()[0], self.trainables[0].segment.trained_names()
        self.parameters = [name for name in self.average if name in trained]

    @classmethod
    def method(cls, cfg):
        return "FedAvg" if changes_of(cfg) is None else f"FedAvg, weights {choice(cfg.weights)}"

    def end_epoch(self, epoch):
        weights, by_samples = self._weights(), self.cfg.topology.weighting == "samples"
        states = [self._sent(number, own, f"client {number}", "up", epoch) for number, own in enumerate(weights)]
        mean = average_states(states, [data.num_train for data in self.data] if by_samples else None)
        self.average = self._sent(-1, mean, "server", "down", epoch)
        for trainable in self.trainables:
            trainable.segment.load_state_dict(trainable.segment.frozen_state() | self.average)

    def _weights(self) -> list[Weights]:
        """All that training changes, of each client."""
        segments, frozen = [one.segment for one in self.trainables], self.trainables[0].segment.frozen_state()
        return [{name: value for name, value in state_of(one).items() if name not in frozen} for one in segments]

    def _sent(self, number: int, weights: Weights, sender: str, way: str, epoch: int) -> Weights:
        """What arrives of weights at the other end, where the average of before is."""
        coder, sent = self.coders[number], weights
        if coder:
            sent, weights, coder.left_out = coder.encode(weights, self.average, self.parameters, sender, epoch)
        self.ledger.book(f"weights_{way}", nbytes_of(sent) * (len(self.data) if way == "down" else 1))
        return weights

    def state(self):
        return {**super().state(), "left_out": [coder and coder.left_out for coder in self.coders]}

    def load(self, state):
        super().load(state)
        self.average = self._weights()[0]
        for coder, left_out in zip(self.coders, state["left_out"], strict=True):
            if coder:
                coder.left_out = left_out


class Images(Anchor):
    @classmethod
    def method(cls, cfg):
        return "each image once, as its file"

    def of_trainees(self, cfg):
        pooled = {"num_clients": 1, "batch_size": cfg.batch_size * cfg.num_clients, "partition": {"name": "iid"}}
        if cfg.samples_per_epoch:
            pooled["samples_per_epoch"] = cfg.samples_per_epoch * cfg.num_clients
        return OmegaConf.merge(cfg, pooled)

    def begin(self):
        num_bytes, labels = files_of(self.data[0])
        self.ledger.book("images_up", num_bytes)
        self.ledger.book("labels_up", self.task.pack(torch.tensor(labels)).nbytes)


def files_of(data: ClientData) -> tuple[int, list[int]]:
    """Bytes of the files of all training samples, and their labels.

    Raises:
        UserError: they are not in files.
    """
    num_bytes, labels, samples = 0, [], data.train.dataset
    for index in samples.indices.tolist():
        source, number = source_of(samples.dataset, index)
        if (path := file_of(source, number)) is None:
            raise UserError("these images are in no files of their own, whose bytes would count: use data=image_folder")
        num_bytes += Path(path).stat().st_size
        labels.append(source.samples[number][1])
    return num_bytes, labels


ANCHORS = {"fedavg": FedAvg, "images": Images}


def train(kind: type[Anchor], cfg: DictConfig, folder: Path) -> None:
    """Trains to the end, or goes on, and leaves in the folder what a run would, as far as a report reads it.

    Raises:
        UserError: it cannot be trained like this, or the folder holds another training.
    """
    check(cfg)
    about = {"method": kind.method(cfg)}
    if (folder / "config.yaml").exists():
        before, path = OmegaConf.load(folder / "config.yaml"), folder / "anchor.json"
        difference = differences(shared(before), shared(cfg), "there", "now")
        if difference or not path.exists() or json.loads(path.read_text()) != about:
            difference = difference or "of another kind"
            raise UserError(f"{folder} holds another training ({difference}): choose another --out")
    if (folder / "summary.json").exists():
        return print(f"finished before: {folder}")
    with held(folder):
        checkpoints = Checkpoints(folder / "checkpoints", keep=1)
        found = checkpoints.latest() or {"epoch": 0, "step": 0, "seconds": 0.0, "best": None, "samples": 0}
        anchor, lines = kind(cfg), Lines(folder / "metrics.jsonl", found.get("metrics_nbytes"))
        write_texts(folder, {"config.yaml": OmegaConf.to_yaml(cfg, resolve=True), "anchor.json": json.dumps(about)})
        if found["epoch"]:
            anchor.load(found["anchor"])
            print(f"going on in epoch {found['epoch'] + 1}")
        else:
            anchor.begin()
        with closing(lines.open()):
            for epoch in range(found["epoch"] + 1, cfg.epochs + 1):
                found |= one_epoch(anchor, epoch, found, lines)
                found |= {"epoch": epoch, "metrics_nbytes": lines.synced(), "anchor": anchor.state()}
                checkpoints.save(epoch, dict(found))
        checkpoints.wait()
        first = anchor.task.metrics[0].name
        summary = {f"test_{name}": found["evaluation"][name] for name in anchor.task.evaluated}
        summary |= {f"best_test_{first}": found["best"], "epochs": cfg.epochs, "steps": found["step"]}
        summary |= {name: found[name] for name in ("samples", "seconds")}
        summary["all_bytes"] = {way: of_training(anchor.ledger.totals, way) for way in WAYS}
        write_texts(folder, {"summary.json": json.dumps(summary, indent=2) + "\n"})


def one_epoch(anchor: Anchor, epoch: int, found: dict[str, Any], lines: Lines) -> dict[str, Any]:
    """Trains an epoch and writes its lines; returns what of `found` has changed."""
    started, task, step = time.perf_counter(), anchor.task, found["step"] + anchor.num_steps
    tally, changed = anchor.epoch(epoch), {"step": step}
    anchor.end_epoch(epoch)
    test = ""
    if is_due(anchor.cfg, epoch):  # whatever the exchange is
        evaluation, first = anchor.evaluation(), task.metrics[0]
        result, best = evaluation[first.name], found["best"]
        best = result if best is None or first.is_better(result, best) else best
        changed |= {"evaluation": evaluation, "best": best}
        lines.write({"kind": "evaluation", "epoch": epoch, "step": step, **evaluation})
        test = f" test {first.form(result):>6}"
    line = {"epoch": epoch, "step": step, "seconds": time.perf_counter() - started, "samples": tally.num_samples}
    line |= tally.means(task) | {f"{name}_bytes": number for name, number in anchor.ledger.traffic.items()}
    lines.write({"kind": "epoch", **line})
    print(epoch_line(epoch, anchor.cfg.epochs, line, task, *(of_training(line, way) for way in WAYS), test), flush=True)
    anchor.ledger.traffic.clear()
    sums = {name: found[name] + line[name] for name in ("samples", "seconds")}
    return changed | sums


def check(cfg: DictConfig) -> None:
    """Raises UserError where a run of this configuration would not be the same training."""
    checks.check(cfg)
    for key, value in PLAIN.items():
        if (given := OmegaConf.select(cfg, key)) != value:
            raise UserError(f"{key}={given} is not offered of a network that is not cut: use {key}={value or 'null'}")


def settings(overrides: list[str]) -> list[DictConfig]:
    """The configurations that the overrides make, one for each seed where there are several, as in seed=0,1."""
    seeds = [word for word in overrides if word.startswith("seed=")]
    found = []
    for seed in seeds[-1].removeprefix("seed=").split(",") if seeds else ["0"]:
        cfg = compose(*(word for word in overrides if word not in seeds), f"seed={seed}")
        num_clients = cfg.num_clients or DEFAULT_NUM_CLIENTS
        found.append(OmegaConf.create(OmegaConf.to_container(cfg, resolve=True) | {"num_clients": num_clients}))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("anchor", choices=ANCHORS)
    parser.add_argument("--out", type=Path, required=True, help="a folder for each seed is made in it")
    parser.add_argument("overrides", nargs="*", help="as for launch.py")
    arguments = parser.parse_intermixed_args()
    for cfg in settings(arguments.overrides):
        kind = ANCHORS[arguments.anchor]
        print(f"{kind.method(cfg)}, seed {cfg.seed}")
        train(kind, cfg, arguments.out / f"seed-{cfg.seed}")


if __name__ == "__main__":
    start(main)
