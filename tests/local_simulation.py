"""Exchanges in which clients, or the server, train alone as plain programs in one process, to compare runs with."""

import copy
from collections.abc import Generator
from contextlib import suppress

import torch
from omegaconf import DictConfig
from simulation import Averaged, State, Updates, changed, loader_of, loss_of, rounds

import splitlearn
from splitlearn.config import compressor_from
from splitlearn.exchange import network
from splitlearn.seeds import derive, generator

# Of a client's batch: gives its map and whether it wants the cut gradient, gets that, and leaves gradients of weights.
Learning = Generator[tuple[torch.Tensor, bool], torch.Tensor | None, None]
Run = tuple[list[float], list[State], State]


class Plain:
    """All segments of a run, without anything between them.

    Attributes:
        clients: each a client segment, with an auxiliary network where there is one.
        losses: of the server, one a step.
        held: what the server keeps of each client: maps as they were decoded, and labels.
        latest: what both ends keep of each client's samples, where the change of these is what crosses.
    """

    def __init__(self, cfg: DictConfig):
        self.cfg, self.numbers = cfg, range(cfg.num_clients)
        self.loaders, abouts = zip(*(loader_of(cfg, one, cfg.num_clients) for one in self.numbers), strict=True)
        built = network.build(cfg, abouts[0])
        self.clients, self.server = [copy.deepcopy(built.client) for _ in self.numbers], built.server
        self.averaged = Averaged(cfg, built.client)
        self.loss, self.losses, self.by_batch = loss_of(cfg), [], []
        self.uplinks, self.downlinks = (
            [compressor_from(cfg, key) for _ in self.numbers] for key in ("compressor", "downlink")
        )
        self.held: dict[int, list] = {}
        self.latest: list[dict] = [{} for _ in self.numbers]
        self.start_rates(cfg)

    def start_rates(self, cfg: DictConfig) -> None:
        """New optimizers, and rates that go over this configuration's epochs."""
        self.updates = [Updates(client, cfg, 1) for client in self.clients]
        self.server_updates = Updates(self.server, cfg, 1)

    def batches(self, epoch: int):
        """Of each client, by its number, one after the other."""
        for loader in self.loaders:
            loader.batch_sampler.start_at(epoch)
        self.which = [[[index for _, index in batch] for batch in one.batch_sampler] for one in self.loaders]
        return enumerate(rounds(self.cfg, dict(enumerate(self.loaders))), start=1)

    def epoch(self, epoch: int, learn, sends, holds: bool = False) -> None:
        """An epoch of the clients; `learn` is a client's, and `sends` says which batches go up."""
        for batch, batches in self.batches(epoch):
            halves, sent = {}, {}
            for number, (images, labels) in batches.items():
                torch.manual_seed(derive(self.cfg.seed, "client", number, epoch, batch))
                halves[number] = learn(self, number, images, labels, batch)
                sent[number] = (*next(halves[number]), labels)
            gradients = self.step(sent, epoch, batch, holds) if sends(batch) else {}
            for number, half in halves.items():
                with suppress(StopIteration):
                    half.send(gradients.get(number))
                if any(parameter.grad is not None for parameter in self.clients[number].parameters()):
                    self.updates[number].add()
                    self.updates[number].step()
        if self.cfg.topology.average == "epoch" and learn is not not_at_all:
            mean = self.averaged({number: client.state_dict() for number, client in enumerate(self.clients)}, epoch)
            for client in self.clients:
                client.load_state_dict(copy.deepcopy(mean))

    def step(self, sent: dict, epoch: int, batch: int, holds: bool) -> dict[int, torch.Tensor]:
        """One of the server, on what the clients send; returns the gradients that go back."""
        gradients = {}
        for number, (smashed, is_wanted, labels) in sent.items():
            self.uplinks[number].seed(derive(self.cfg.seed, "uplink", number, epoch, batch))
            self.downlinks[number].seed(derive(self.cfg.seed, "downlink", number, len(self.losses) + 1))
            x = smashed.detach().requires_grad_(is_wanted)
            codecs = self.uplinks[number], self.downlinks[number]
            if self.cfg.delta:
                samples = self.which[number][batch - 1]
                sent[number] = changed(x, None, samples, self.latest[number], self.cfg.delta, *codecs), labels
            else:
                sent[number] = splitlearn.compress(x, *codecs), labels
            if holds:
                self.held.setdefault(number, []).append((sent[number][0].detach(), labels))
            if is_wanted:
                gradients[number] = x
        self.learn_from(sent)
        return {number: x.grad for number, x in gradients.items()}

    def learn_from(self, batches: dict[int, tuple]) -> None:
        """A step of the server on these maps and labels, by client."""
        losses = []
        for number, (decoded, labels) in batches.items():
            torch.manual_seed(derive(self.cfg.seed, "server", len(self.losses) + 1, number))
            loss = self.loss(self.server(decoded), labels)
            loss.backward()
            losses.append(loss.item())
            self.by_batch.append((loss.item(), len(labels)))
            self.server_updates.add()
        self.server_updates.step()
        self.losses.append(sum(losses) / len(losses))

    def replay(self, epoch: int) -> None:
        """An epoch of the server alone."""
        orders = {
            number: torch.randperm(len(kept), generator=generator(self.cfg.seed, "held", epoch, number)).tolist()
            for number, kept in self.held.items()
        }
        for step in range(max(map(len, orders.values()))):
            self.learn_from(
                {number: self.held[number][order[step]] for number, order in orders.items() if step < len(order)}
            )

    def end_epoch(self) -> None:
        for one in (*self.updates, self.server_updates):
            one.schedule.step()

    def result(self) -> Run:
        return self.losses, [client.state_dict() for client in self.clients], self.server.state_dict()


def by_local_loss(plain: Plain, number: int, images: torch.Tensor, labels: torch.Tensor, batch: int) -> Learning:
    segment, auxiliary = plain.clients[number].parts
    smashed = segment(images)
    yield smashed, False
    plain.loss(auxiliary(smashed), labels).backward()


def by_aligned_loss(plain: Plain, number: int, images: torch.Tensor, labels: torch.Tensor, batch: int) -> Learning:
    segment, auxiliary = plain.clients[number].parts
    options = plain.cfg.exchange
    smashed = segment(images)
    own = smashed.detach().requires_grad_()
    loss = plain.loss(auxiliary(own), labels)
    gradient = yield smashed, (batch - 1) // options.send_every % options.align_every == 0
    if gradient is not None:
        (estimate,) = torch.autograd.grad(loss, own, create_graph=True)
        loss = loss + options.weight * (estimate - gradient).square().sum() / gradient.square().sum()
    loss.backward()
    smashed.backward(own.grad if gradient is None else gradient)


def by_cut_gradient(plain: Plain, number: int, images: torch.Tensor, labels: torch.Tensor, batch: int) -> Learning:
    smashed = plain.clients[number](images)
    smashed.backward((yield smashed, True))


@torch.no_grad()
def not_at_all(plain: Plain, number: int, images: torch.Tensor, labels: torch.Tensor, batch: int) -> Learning:
    client = plain.clients[number].eval()
    yield client[0](images), False
    client.train()


def train_by_own_loss(cfg: DictConfig) -> Run:
    """exchange=local_loss and exchange=aligned."""
    plain, every = Plain(cfg), cfg.exchange.send_every
    learn = by_aligned_loss if "align_every" in cfg.exchange else by_local_loss
    for epoch in range(1, cfg.epochs + 1):
        plain.epoch(epoch, learn, lambda batch: (batch - 1) % every == 0)
        plain.end_epoch()
    return plain.result()


def train_with_maps_sent_once(cfg: DictConfig) -> Run:
    plain, local_epochs, every = Plain(cfg), cfg.exchange.local_epochs, cfg.exchange.resend_every or cfg.epochs
    for part, number in enumerate((local_epochs, cfg.epochs - local_epochs)):
        of_part = copy.deepcopy(cfg)
        of_part.epochs = number
        plain.start_rates(of_part)
        for epoch in range(part * local_epochs + 1, part * local_epochs + number + 1):
            if part == 0:
                plain.epoch(epoch, by_local_loss, lambda batch: False)
            elif (epoch - local_epochs - 1) % every == 0:
                plain.held = {}
                plain.epoch(epoch, not_at_all, lambda batch: True, holds=True)
            else:
                plain.replay(epoch)
            plain.end_epoch()
    return plain.result()


def train_by_moves_of_the_loss(cfg: DictConfig) -> Run:
    plain, last, waits = Plain(cfg), None, False
    for epoch in range(1, cfg.epochs + 1):
        plain.by_batch.clear()
        if not waits:
            plain.epoch(epoch, by_cut_gradient, lambda batch: True)
        elif waits == "first":
            plain.held = {}
            plain.epoch(epoch, not_at_all, lambda batch: True, holds=True)
        else:
            plain.replay(epoch)
        plain.end_epoch()
        of_epoch = sum(loss * number for loss, number in plain.by_batch) / sum(number for _, number in plain.by_batch)
        has_moved = last is None or abs(of_epoch - last) >= cfg.exchange.threshold
        last = last if waits else of_epoch
        waits = False if has_moved else "again" if waits else "first"
    return plain.result()
