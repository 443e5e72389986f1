"""Eq. (1) and (2) of the MS paper as a plain program in one process, to compare distributed runs with."""

import copy
import csv
import itertools
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache, partial

import numpy as np
import torch
import torch.nn.functional as F
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import splitlearn
from splitlearn.compose import compose as composed
from splitlearn.compressors import Identity
from splitlearn.config import compressor_from
from splitlearn.exchange import network
from splitlearn.kinds import CONF
from splitlearn.seeds import derive, generator
from splitlearn.segments import adapters, bottleneck
from splitlearn.segments.trainable import trained
from splitlearn.tasks.image_classification import networks, sources
from splitlearn.tasks.language import texts
from splitlearn.tasks.language.encoder import Encoder
from splitlearn.tasks.language.gpt import GPT
from splitlearn.tasks.loading import loaders

State = dict[str, torch.Tensor]


GROUPS = {path.name for path in CONF.iterdir() if path.is_dir()} | {"compressor"}
PARSER = OverridesParser.create()


def compose(*overrides: str) -> DictConfig:
    """The configuration that launch.py would get, without TensorBoard's files.

    Hydra reads some twenty files for it, of which the tests ask for more than a thousand: what chooses files is
    composed once, and values are then set in a copy.
    """
    overrides = (*overrides, "log.tensorboard=false")
    values = [word for word in overrides if re.match(r"[a-z][\w.]*=", word) and word.partition("=")[0] not in GROUPS]
    try:
        cfg = copy.deepcopy(_chosen(tuple(word for word in overrides if word not in values)))
        for value in PARSER.parse_overrides(values):
            OmegaConf.update(cfg, value.key_or_group, value.value(), merge=True)
    except Exception:  # a mistake, which Hydra is to find
        return composed(*overrides)
    return cfg


@cache
def _chosen(words: tuple[str, ...]) -> DictConfig:
    return composed(*words)


def optimizer_of(module: nn.Module, cfg: DictConfig) -> torch.optim.Optimizer:
    options = {key: value for key, value in cfg.optimizer.items() if key not in ("_target_", "decay")}
    if "decay" not in cfg.optimizer:
        return torch.optim.SGD(module.parameters(), **options)
    without = cfg.optimizer.decay == "matrices"
    rates = [0.0 if without and one.dim() == 1 else cfg.optimizer.weight_decay for one in module.parameters()]
    pairs = zip(module.parameters(), rates, strict=True)
    return torch.optim.AdamW([{"params": [one], "weight_decay": rate} for one, rate in pairs], **options)


def is_of_text(cfg: DictConfig) -> bool:
    return cfg.task._target_.endswith(".CausalLM")


def is_of_labelled_texts(cfg: DictConfig) -> bool:
    return cfg.task._target_.endswith(".SequenceClassification")


def as_it_comes(cfg: DictConfig, inputs: torch.Tensor) -> torch.Tensor:
    """A batch of inputs; of texts as long as the longest of it."""
    return inputs[:, : int((inputs >= 0).sum(1).max())] if is_of_labelled_texts(cfg) else inputs


def loader_of(cfg: DictConfig, number: int, num_clients: int) -> tuple[DataLoader, dict]:
    """A client's training samples, and what the network has to know of them."""
    if is_of_text(cfg):
        text = b"".join(texts.plays()[0].values())
        size = cfg.task.context + 1
        windows = torch.tensor(list(text[: len(text) // size * size])).view(-1, size)
        if (limit := cfg.data.max_train_samples) is not None:
            windows = windows[np.sort(np.random.default_rng(cfg.seed).permutation(len(windows))[:limit])]
        data = TensorDataset(windows[:, :-1], windows[:, 1:])
        about = {"vocab_size": 256, "context": cfg.task.context}
    elif is_of_labelled_texts(cfg):
        with open(cfg.data.root, newline="") as file:
            rows = [(row["text"].encode()[: cfg.data.max_length], row["label"]) for row in csv.DictReader(file)]
        names = sorted({label for _, label in rows})
        tokens = [[*text] + [-1] * (cfg.data.max_length - len(text)) for text, _ in rows]
        data = TensorDataset(torch.tensor(tokens), torch.tensor([names.index(label) for _, label in rows]))
        about = {"num_classes": len(names), "vocab_size": 256}
    else:
        data, _, classes = sources.build(cfg.data, cfg.seed)
        about = {"num_classes": len(classes)}
    return loaders(data, TensorDataset(torch.empty(0)), number, num_clients, cfg)[0], about


def cross_entropy(outputs: torch.Tensor, targets: torch.Tensor, **options) -> torch.Tensor:
    """Of scores (B, C), or (B, T, V)."""
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten(), **options)


def train_uncut(cfg: DictConfig, dropout: str = "server") -> tuple[list[float], State]:
    """Losses of all steps, and the weights, of the whole network trained on the first client's samples.

    `dropout` says on which end of the cut its layers are.
    """
    loader, about = loader_of(cfg, 0, 1)
    torch.manual_seed(cfg.seed)
    if cfg.arch.name == "hf":
        model = transformer(cfg, about.get("num_classes"))
    elif is_of_text(cfg):
        model = GPT(256, cfg.task.context, cfg.arch.depth, cfg.arch.width, cfg.arch.heads, cfg.arch.dropout)
    elif is_of_labelled_texts(cfg):
        sizes = {key: cfg.arch[key] for key in ("depth", "width", "heads", "dropout")}
        model = Encoder(256, cfg.data.max_length, about["num_classes"], **sizes)
    else:
        model = networks.build(cfg.arch.name, 10, cfg.data.image_size)
        if cfg.channels_last is True:
            model = model.to(memory_format=torch.channels_last)
    if cfg.lora.rank:
        adapters.inject(model, cfg.lora, cfg.seed)
    if cfg.bottleneck:
        built = network.build(cfg, {"num_classes": 10})
        fit_bottlenecks(cfg, built, [loader])
        model = built.model
    optimizer, losses = optimizer_of(model, cfg), []
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, cfg.epochs)
    for epoch in range(1, cfg.epochs + 1):
        loader.batch_sampler.start_at(epoch)
        for batch, (images, labels) in enumerate(loader, start=1):
            place = (len(losses) + 1, 0) if dropout == "server" else (0, epoch, batch)
            torch.manual_seed(derive(cfg.seed, dropout, *place))
            outputs = model(as_it_comes(cfg, images))
            loss = cross_entropy(getattr(outputs, "logits", outputs), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        schedule.step()
    return losses, each_once(model.state_dict())


def transformer(cfg: DictConfig, num_classes: int | None = None) -> nn.Module:
    """The model of transformers that arch.config describes, as its library gives it."""
    import transformers

    is_classifier = is_of_labelled_texts(cfg)
    width, heads = cfg.arch.width, cfg.arch.heads
    positions = cfg.data.max_length if is_classifier else cfg.task.context
    sizes = {"num_hidden_layers": cfg.arch.depth, "hidden_size": width, "num_attention_heads": heads}
    sizes |= {"vocab_size": 256, "max_position_embeddings": positions, "intermediate_size": 4 * width}
    sizes |= {"num_key_value_heads": heads, "head_dim": width // heads, "pad_token_id": None}
    sizes |= {"num_labels": num_classes} if is_classifier else {"is_decoder": True}
    sizes |= {"bos_token_id": None, "eos_token_id": None, "use_cache": False}
    ours = ("_target_", "name", "model", "gguf", "config", "depth", "width", "heads", "dtype", "download")
    further = {key: value for key, value in cfg.arch.items() if key not in ours}
    kind = transformers.AutoConfig.for_model(cfg.arch.config, **sizes, **further)
    if is_classifier:
        model = transformers.AutoModelForSequenceClassification.from_config(kind)
        model.forward = lambda x: type(model).forward(model, input_ids=x.clamp(min=0), attention_mask=x >= 0)
        model.heads_paths = ("classifier",)
    else:
        model = transformers.AutoModelForCausalLM.from_config(kind)
    model.blocks_path = next(path for path, one in model.named_modules() if isinstance(one, nn.ModuleList))
    return model


def each_once(state: State) -> State:
    """Without the further names of a parameter that is tied."""
    found = {}
    for name, value in state.items():
        found.setdefault(value.data_ptr(), (name, value))
    return dict(found.values())


class Updates:
    """Steps of one segment's optimizer, over the batches of which `add` has taken up the gradients."""

    def __init__(self, module: nn.Module, cfg: DictConfig, num_updates: int):
        self.parameters, self.cfg, self.num_updates = trained(module), cfg, num_updates
        self.optimizer = optimizer_of(module, cfg)
        if cfg.schedule.per == "step" and "T_max" in cfg.schedule:
            self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, cfg.epochs * num_updates)
        elif cfg.schedule.per == "step":
            options = {"max_lr": cfg.optimizer.lr, "total_steps": cfg.epochs * num_updates}
            self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, **options)
        else:
            self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, cfg.epochs)
        self.optimizer.step()  # of no gradients: else torch warns where a client in sequence has not stepped yet
        self.sums, self.share, self.updates = None, 0.0, 0

    def add(self, share: float = 1.0) -> None:
        gradients = [parameter.grad * share for parameter in self.parameters]
        self.sums = [a + b for a, b in zip(self.sums, gradients, strict=True)] if self.sums else gradients
        self.share += share
        for parameter in self.parameters:
            parameter.grad = None

    def step(self) -> None:
        for parameter, total in zip(self.parameters, self.sums, strict=True):
            parameter.grad = total / self.share
        if self.cfg.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.cfg.clip_norm)
        groups = self.optimizer.param_groups
        rate = groups[0]["lr"]
        for group in groups:
            group["lr"] = rate * self.warmup()
        self.optimizer.step()
        for group in groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        self.sums, self.share = None, 0.0

    def warmup(self) -> float:
        start, number = self.cfg.warmup["from"], round(self.cfg.warmup.epochs * self.num_updates)
        return start + (1 - start) * self.updates / number if self.updates < number else 1.0

    def end_update(self) -> None:
        """The server's optimizer has stepped."""
        self.updates += 1
        if self.cfg.schedule.per == "step" and self.updates < self.cfg.epochs * self.num_updates:
            self.schedule.step()


def loss_of(cfg: DictConfig):
    weights = cfg.task.get("class_weights")
    if weights == "balanced":
        train, _, classes = sources.build(cfg.data, cfg.seed)
        num_classes = len(classes)
        counts = [sum(int(label) == number for _, label in train) for number in range(num_classes)]
        weights = [len(train) / num_classes / count for count in counts]
    weights = None if weights is None else torch.tensor(list(weights))
    return partial(cross_entropy, weight=weights, label_smoothing=cfg.task.label_smoothing)


def train_split(cfg: DictConfig) -> tuple[list[float], list[State], State]:
    """Mean losses of all steps, and the weights of the client segments and the server segment.

    With membership.sample, those that are drawn begin their epoch with the newest weights and a new optimizer.
    """
    numbers = range(cfg.num_clients)
    of_clients, abouts = zip(*(loader_of(cfg, number, cfg.num_clients) for number in numbers), strict=True)
    built = network.build(cfg, abouts[0])
    fit_bottlenecks(cfg, built, of_clients)
    first, server = built.client, built.server
    clients = [copy.deepcopy(first) for _ in numbers]
    of_all = [-(-len(loader) // cfg.accumulate) for loader in of_clients]
    num_updates = sum(of_all) if cfg.topology.name == "sequential" else max(of_all)
    updates = [Updates(client, cfg, num_updates) for client in clients]
    server_updates = Updates(server, cfg, num_updates)
    everybody = [*updates, server_updates]
    loss_function = loss_of(cfg)
    uplinks = [compressor_from(cfg, "compressor") for number in numbers]
    downlinks = [compressor_from(cfg, "downlink") for number in numbers]
    is_u_shaped = len(built.cuts) == 2
    if is_u_shaped:  # the labels stay on the client, which has the last part too
        features, feature_gradients = (
            [compressor_from(cfg, key) for number in numbers] for key in ("features", "feature_gradient")
        )
    losses, held = [], [{} for number in numbers]
    averaged = Averaged(cfg, first)
    for epoch in range(1, cfg.epochs + 1):
        batches_done = [0] * cfg.num_clients
        for loader in of_clients:
            loader.batch_sampler.start_at(epoch)
        which = [[[index for _, index in batch] for batch in loader.batch_sampler] for loader in of_clients]
        drawn = numbers
        if cfg.membership.sample is not None:
            order = torch.randperm(cfg.num_clients, generator=generator(cfg.seed, "round", epoch))
            drawn = sorted(order[: cfg.membership.sample].tolist())
            if cfg.topology.get("average") in ("epoch", "step"):  # all have the newest weights, see below
                for one in updates:
                    one.optimizer.state.clear()
        since_update = 0
        for batches in rounds(cfg, {number: of_clients[number] for number in drawn}):
            since_update += 1
            step_losses, complete = [], {}
            for number, (images, labels) in batches.items():
                batches_done[number] += 1
                uplinks[number].seed(derive(cfg.seed, "uplink", number, epoch, batches_done[number]))
                downlinks[number].seed(derive(cfg.seed, "downlink", number, len(losses) + 1))
                images = as_it_comes(cfg, images)
                lengths = (images >= 0).sum(1) if is_of_labelled_texts(cfg) else None
                smashed = clients[number][0](images)
                codecs = uplinks[number], downlinks[number]
                if cfg.delta:
                    samples = which[number][batches_done[number] - 1]
                    decoded = changed(smashed, lengths, samples, held[number], cfg.delta, *codecs)
                else:
                    decoded = crossed(smashed, lengths, *codecs, cfg.backward)
                outputs = server(decoded, lengths)
                if is_u_shaped:
                    features[number].seed(derive(cfg.seed, "features", number, len(losses) + 1))
                    stream = "feature_gradient", number, epoch, batches_done[number]
                    feature_gradients[number].seed(derive(cfg.seed, *stream))
                    codecs = features[number], feature_gradients[number]
                    outputs = clients[number][1](crossed(outputs, lengths, *codecs, cfg.backward), lengths)
                loss = loss_function(outputs, labels)
                loss.backward()
                step_losses.append(loss.item())
                done, last = batches_done[number], len(of_clients[number])
                sizes = of_clients[number].batch_sampler.sizes
                first = (done - 1) // cfg.accumulate * cfg.accumulate
                share = len(labels) / sum(sizes[first : first + cfg.accumulate])
                server_updates.add(share)
                updates[number].add(share)
                complete[number] = done % cfg.accumulate == 0 or done == last
            is_update = since_update == cfg.accumulate or all(complete.values())
            if is_update:
                server_updates.step()
            if cfg.topology.get("average") == "step":
                found = [updates[number].sums for number in batches]
                mean = [sum(gradients) / len(batches) for gradients in zip(*found, strict=True)]
                for one in (updates[number] for number in drawn):
                    one.sums, one.share = [gradient.clone() for gradient in mean], 1.0
                complete = dict.fromkeys(drawn, True)
            for number in complete:
                if is_update or complete[number]:
                    updates[number].step()
            if is_update:
                since_update = 0
                for one in everybody:
                    one.end_update()
            if cfg.topology.name == "sequential":  # one network for all: the next client goes on with this one
                (number,) = batches
                clients = [clients[number]] * cfg.num_clients
                updates = [updates[number]] * cfg.num_clients
                uplinks, downlinks = ([codecs[number]] * cfg.num_clients for codecs in (uplinks, downlinks))
            losses.append(sum(step_losses) / len(step_losses))
        if cfg.topology.get("average") in ("epoch", "step"):
            mean = averaged({number: clients[number].state_dict() for number in drawn}, epoch)
            for client in clients:
                client.load_state_dict(copy.deepcopy(mean))
        for one in everybody if cfg.schedule.per == "epoch" else ():
            one.schedule.step()
    return losses, [client.state_dict() for client in clients], server.state_dict()


class Averaged:
    """The mean of the clients' weights after an epoch, as it arrives with the run's codec of weights."""

    def __init__(self, cfg: DictConfig, first: nn.Module):
        self.cfg, self.frozen, self.last = cfg, first.frozen_state(), copy.deepcopy(first.state_dict())
        of_parts = {name for part in first.parts for name, one in part.named_parameters() if one.requires_grad}
        self.names = [name for name in self.last if name in of_parts]  # buffers go as they are
        self.codec = compressor_from(cfg, "weights") if "weights" in cfg else Identity()
        self.left_out: dict[str, torch.Tensor | int] = defaultdict(int)

    def __call__(self, states: dict[int, State], epoch: int) -> State:
        """Of the weights of these clients."""
        found = [self.arriving(f"client {number}", state, epoch) for number, state in states.items()]
        mean = {
            name: sum(state[name] for state in found) / len(found) if value.is_floating_point() else value
            for name, value in found[0].items()
        } | self.frozen
        self.last = self.arriving("server", mean, epoch)
        return self.last

    def arriving(self, sender: str, state: State, epoch: int) -> State:
        """What is new since the last mean is sent, with what was left out before."""
        if self.codec.is_exact:
            return state
        sizes = [state[name].numel() for name in self.names]
        new = torch.cat([(state[name] - self.last[name]).flatten() for name in self.names])
        change, scales = new + self.left_out[sender], []
        for one, both in zip(new.split(sizes), change.split(sizes), strict=True):
            scale = max(one.square().mean().sqrt(), 0.01 * both.square().mean().sqrt())
            scales.append((scale if scale else scale + 1).expand(len(one)))
        self.codec.seed(derive(self.cfg.seed, "weights", sender, epoch))
        arrived = self.codec.decode(self.codec.encode(change / torch.cat(scales))) * torch.cat(scales)
        self.left_out[sender] = change - arrived
        parts = zip(self.names, arrived.split(sizes), strict=True)
        return state | {name: self.last[name] + part.view_as(state[name]) for name, part in parts}


def crossed(x: torch.Tensor, lengths: torch.Tensor | None, *codecs) -> torch.Tensor:
    """What arrives of a map; of samples of these lengths only what they have crosses, and zeros are put in between."""
    if lengths is None:
        return splitlearn.compress(x, *codecs)
    parts = [x[number, :length] for number, length in enumerate(lengths.tolist())]
    rows = splitlearn.compress(torch.cat(parts).unsqueeze(1), *codecs).squeeze(1)
    return torch.nn.utils.rnn.pad_sequence(rows.split(lengths.tolist()), batch_first=True)


def changed(
    x: torch.Tensor, lengths: torch.Tensor | None, samples: list[int], held: dict[int, torch.Tensor], kind: str, *codecs
) -> torch.Tensor:
    """What arrives of a map where its change is sent: `held` has what arrived of each sample before."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[kind]
    before = torch.zeros_like(x)
    for place, number in enumerate(samples):
        if number in held:
            before[place, : len(held[number])] = held[number].float()
            if (x[place] - before[place]).norm() >= x[place].norm():  # as if it was new
                before[place] = 0
    arrived = before + crossed(x - before, lengths, *codecs, "straight_through")
    for place, number in enumerate(samples):
        held[number] = arrived[place, : x.shape[1] if lengths is None else lengths[place]].detach().to(dtype).clone()
    return arrived


@torch.no_grad()
def fit_bottlenecks(cfg: DictConfig, built: network.Network, loaders: list) -> None:
    """The start of the bottlenecks: the PCA of the maps that the network gives for each client's first batches."""
    for cut in built.unfitted:
        point = built.cuts[cut]
        total = bottleneck.Moments.zero(point.channels[1])
        for number, loader in enumerate(loaders):
            of_client = bottleneck.Moments.zero(point.channels[1])
            loader.batch_sampler.start_at(1)
            for batch, (images, _) in enumerate(itertools.islice(loader, cfg.bottleneck_batches), start=1):
                tried = copy.deepcopy(built)  # whose batch norms change
                tried.client.train()
                tried.server.train()
                with bottleneck.measured((tried.client, tried.server)[cut].parts[0], point) as of_batch:
                    torch.manual_seed(derive(cfg.seed, "first maps", number, batch))
                    smashed = tried.client[0](images)
                    torch.manual_seed(derive(cfg.seed, "first maps", "server", number, batch))
                    tried.server(smashed)
                of_client += of_batch
            total += bottleneck.Moments.unpack(*of_client.packed()) if cut == 0 else of_client
        weights, _ = bottleneck.fitted(point, total)
        built.model.load_state_dict(built.model.state_dict() | weights)


def rounds(cfg: DictConfig, loaders: dict) -> Iterator[dict[int, list]]:
    """The batches of each step of an epoch, by client."""
    if cfg.topology.name == "sequential":
        for number, loader in loaders.items():
            for batch in loader:
                yield {number: batch}
        return
    iterators = {number: iter(loader) for number, loader in loaders.items()}
    while batches := {
        number: batch for number, iterator in iterators.items() if (batch := next(iterator, None)) is not None
    }:
        yield batches
