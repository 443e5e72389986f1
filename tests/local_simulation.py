"""Exchanges in which clients train by losses of their own, as plain programs in one process, to compare runs with."""

import copy

import torch
from omegaconf import DictConfig
from simulation import State, Updates, loader_of, loss_of, rounds

import splitlearn
from splitlearn.config import compressor_from
from splitlearn.exchange import network
from splitlearn.seeds import derive


class Plain:
    """All segments of a run, without anything between them.

    Attributes:
        clients: pairs of client segment and auxiliary network.
        losses: of the server, one a step.
    """

    def __init__(self, cfg: DictConfig):
        self.cfg, self.numbers = cfg, range(cfg.num_clients)
        self.loaders, abouts = zip(*(loader_of(cfg, one, cfg.num_clients) for one in self.numbers), strict=True)
        built = network.build(cfg, abouts[0])
        self.clients, self.server = [copy.deepcopy(built.client) for _ in self.numbers], built.server
        every = cfg.exchange.get("send_every", 1)
        num_steps = max(-(-len(one) // every) for one in self.loaders)
        self.updates = [Updates(client, cfg, num_steps) for client in self.clients]
        self.server_updates = Updates(self.server, cfg, self.updates[0].num_updates)
        self.loss, self.losses = loss_of(cfg), []
        self.uplinks = [compressor_from(cfg, "compressor") for _ in self.numbers]

    def train(self, learn, sends) -> tuple[list[float], list[State], State]:
        """The run; `learn` leaves a client's gradients and gives its map, `sends` says which batches go up."""
        for epoch in range(1, self.cfg.epochs + 1):
            for loader in self.loaders:
                loader.batch_sampler.start_at(epoch)
            for batch, batches in enumerate(rounds(self.cfg, dict(enumerate(self.loaders))), start=1):
                learned = {}
                for number, (images, labels) in batches.items():
                    torch.manual_seed(derive(self.cfg.seed, "client", number, epoch, batch))
                    learned[number] = learn(self, number, images, labels, (epoch, batch)), labels
                if sends(epoch, batch):
                    self.step_of_server(learned, epoch, batch)
                for number in batches:
                    self.updates[number].add()
                    self.updates[number].step()
            self.average()
            for one in (*self.updates, self.server_updates):
                one.schedule.step()
        return self.losses, [client.state_dict() for client in self.clients], self.server.state_dict()

    def step_of_server(self, learned: dict, epoch: int, batch: int) -> None:
        losses = []
        for number, (smashed, labels) in learned.items():
            self.uplinks[number].seed(derive(self.cfg.seed, "uplink", number, epoch, batch))
            with torch.no_grad():
                decoded = splitlearn.compress(smashed.detach(), self.uplinks[number])
            torch.manual_seed(derive(self.cfg.seed, "server", len(self.losses) + 1, number))
            loss = self.loss(self.server(decoded), labels)
            loss.backward()
            losses.append(loss.item())
            self.server_updates.add()
        self.server_updates.step()
        self.losses.append(sum(losses) / len(losses))

    def average(self) -> None:
        states = [client.state_dict() for client in self.clients]
        mean = {
            name: sum(state[name] for state in states) / len(states) if value.is_floating_point() else value
            for name, value in states[0].items()
        }
        for client in self.clients if self.cfg.topology.average == "epoch" else ():
            client.load_state_dict(copy.deepcopy(mean))


def by_local_loss(plain: Plain, number: int, images: torch.Tensor, labels: torch.Tensor, place) -> torch.Tensor:
    segment, auxiliary = plain.clients[number].parts
    smashed = segment(images)
    plain.loss(auxiliary(smashed), labels).backward()
    return smashed


def train_by_local_loss(cfg: DictConfig) -> tuple[list[float], list[State], State]:
    every = cfg.exchange.send_every
    return Plain(cfg).train(by_local_loss, lambda epoch, batch: (batch - 1) % every == 0)
