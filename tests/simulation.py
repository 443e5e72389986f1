"""Eq. (1) and (2) of the MS paper as a plain program in one process, to compare distributed runs with."""

import copy
import warnings
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import nn

import splitlearn
from splitlearn.compose import compose as composed
from splitlearn.config import compressor_from
from splitlearn.exchange import network
from splitlearn.seeds import derive
from splitlearn.segments.trainable import trained
from splitlearn.tasks.image_classification import networks, sources
from splitlearn.tasks.image_classification.loading import loaders

State = dict[str, torch.Tensor]


def compose(*overrides: str) -> DictConfig:
    """The configuration that launch.py would get, without TensorBoard's files."""
    return composed(*overrides, "log.tensorboard=false")


def optimizer_of(module: nn.Module, cfg: DictConfig) -> torch.optim.Optimizer:
    options = {key: value for key, value in cfg.optimizer.items() if key != "_target_"}
    return torch.optim.SGD(module.parameters(), **options)


def train_uncut(cfg: DictConfig, dropout: str = "server") -> tuple[list[float], State]:
    """Losses of all steps, and the weights, of the whole network trained on the first client's samples.

    `dropout` says on which end of the cut its layers are.
    """
    torch.manual_seed(cfg.seed)
    model = networks.build(cfg.arch.name, 10, cfg.data.image_size)
    train, test, _ = sources.build(cfg.data, cfg.seed)
    loader, _ = loaders(train, test, 0, 1, cfg)
    optimizer, losses = optimizer_of(model, cfg), []
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, cfg.epochs)
    for epoch in range(1, cfg.epochs + 1):
        loader.batch_sampler.start_at(epoch)
        for batch, (images, labels) in enumerate(loader, start=1):
            place = (len(losses) + 1, 0) if dropout == "server" else (0, epoch, batch)
            torch.manual_seed(derive(cfg.seed, dropout, *place))
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        schedule.step()
    return losses, model.state_dict()


def train_split(cfg: DictConfig) -> tuple[list[float], list[State], State]:
    """Mean losses of all steps, and the weights of the client segments and the server segment."""
    train, test, num_classes = sources.build(cfg.data, cfg.seed)
    numbers = range(cfg.num_clients)
    of_clients = [loaders(train, test, number, cfg.num_clients, cfg)[0] for number in numbers]
    built = network.build(cfg, {"num_classes": num_classes})
    first, server = built.client, built.server
    clients = [copy.deepcopy(first) for _ in numbers]
    optimizers = [optimizer_of(client, cfg) for client in clients]
    server_optimizer = optimizer_of(server, cfg)
    schedules = [
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, cfg.epochs)
        for optimizer in (*optimizers, server_optimizer)
    ]
    uplinks = [compressor_from(cfg, "compressor") for number in numbers]
    downlinks = [compressor_from(cfg, "downlink") for number in numbers]
    is_u_shaped = len(built.cuts) == 2
    if is_u_shaped:  # the labels stay on the client, which has the last part too
        features, feature_gradients = (
            [compressor_from(cfg, key) for number in numbers] for key in ("features", "feature_gradient")
        )
    losses = []
    for epoch in range(1, cfg.epochs + 1):
        batches_done = [0] * cfg.num_clients
        for loader in of_clients:
            loader.batch_sampler.start_at(epoch)
        for batches in rounds(cfg, of_clients):
            server_optimizer.zero_grad()
            step_losses = []
            for number, (images, labels) in batches.items():
                batches_done[number] += 1
                uplinks[number].seed(derive(cfg.seed, "uplink", number, epoch, batches_done[number]))
                downlinks[number].seed(derive(cfg.seed, "downlink", number, len(losses) + 1))
                smashed = clients[number][0](images)
                decoded = splitlearn.compress(smashed, uplinks[number], downlinks[number], cfg.backward)
                outputs = server(decoded)
                if is_u_shaped:
                    features[number].seed(derive(cfg.seed, "features", number, len(losses) + 1))
                    stream = "feature_gradient", number, epoch, batches_done[number]
                    feature_gradients[number].seed(derive(cfg.seed, *stream))
                    outputs = splitlearn.compress(outputs, features[number], feature_gradients[number], cfg.backward)
                    outputs = clients[number][1](outputs)
                loss = F.cross_entropy(outputs, labels)
                optimizers[number].zero_grad()
                loss.backward()
                step_losses.append(loss.item())
            for parameter in trained(server):
                parameter.grad /= len(batches)
            server_optimizer.step()
            if cfg.topology.get("average") == "step":
                for parameters in zip(*(trained(client) for client in clients), strict=True):
                    mean = sum(parameters[number].grad for number in batches) / len(batches)
                    for parameter in parameters:
                        parameter.grad = mean.clone()
                batches = dict.fromkeys(numbers)
            for number in batches:
                optimizers[number].step()
            if cfg.topology.name == "sequential":  # one network for all: the next client goes on with this one
                (number,) = batches
                clients = [clients[number]] * cfg.num_clients
                optimizers = [optimizers[number]] * cfg.num_clients
            losses.append(sum(step_losses) / len(step_losses))
        if cfg.topology.get("average") in ("epoch", "step"):
            states = [client.state_dict() for client in clients]
            mean = {
                name: sum(state[name] for state in states) / len(states) if value.is_floating_point() else value
                for name, value in states[0].items()
            } | clients[0].frozen_state()
            for client in clients:
                client.load_state_dict(copy.deepcopy(mean))
        with warnings.catch_warnings():  # in sequence, the optimizers of clients that were handed another's do not step
            warnings.simplefilter("ignore")
            for schedule in schedules:
                schedule.step()
    return losses, [client.state_dict() for client in clients], server.state_dict()


def rounds(cfg: DictConfig, loaders: list) -> Iterator[dict[int, list]]:
    """The batches of each step of an epoch, by client."""
    if cfg.topology.name == "sequential":
        for number, loader in enumerate(loaders):
            for batch in loader:
                yield {number: batch}
        return
    iterators = [iter(loader) for loader in loaders]
    while batches := {
        number: batch for number, iterator in enumerate(iterators) if (batch := next(iterator, None)) is not None
    }:
        yield batches
