"""Causal language modelling: each token of a text is predicted from those before it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

from splitlearn.compressors.checking import is_as_sent
from splitlearn.errors import UserError
from splitlearn.seeds import torch_drawing_from
from splitlearn.tasks.checking import check_smoothing
from splitlearn.tasks.language import hf, networks, texts, tokens
from splitlearn.tasks.language.gpt import generate
from splitlearn.tasks.language.tokens import Bytes, tokenizer_from
from splitlearn.tasks.loading import client_data, limited, test_data
from splitlearn.tasks.partition import within
from splitlearn.tasks.task import ClientData, Metric, Task

DTYPES = {torch.uint8: 1 << 8, torch.uint16: 1 << 16, torch.int32: 1 << 31}  # of packed targets, and their ends
MAX_BYTES_PER_TOKEN = 1e6
MAX_TOKENS = 1 << 53
WIDEST = 700.0  # nats, of which a float holds the exponential
OPENINGS, TEMPERATURE = ("\n", "The"), 0.8  # of the text at the end of a run


def perplexity(nats: float) -> float:
    """Of a mean loss."""
    return math.exp(min(nats, WIDEST))


class CausalLM(Task):
    """Inputs are (B, T) int64 tokens, targets (B, T) the tokens after them, outputs (B, T, V) scores.

    A sample is a window. All have T tokens, so that the mean over samples is the mean over tokens.

    Args:
        context: T, tokens of a window: all that the network sees at once.
        label_smoothing: the part of a target that is shared out over all tokens, in training.
        sample_bytes: length of the text that the finished network writes at the end of a run, about; 0: none.

    Raises:
        ValueError: an option is not one of these.
    """

    metrics: ClassVar = (
        Metric("perplexity", "perplexity", higher_is_better=False, is_share=False, of_mean=perplexity),
        Metric("accuracy", "next-token accuracy"),
        Metric("bits_per_byte", "bits per byte", higher_is_better=False, is_share=False),
    )
    train_metrics: ClassVar = ("perplexity", "accuracy")
    unit: ClassVar = "tokens"
    revealed: ClassVar = (
        "the targets are the text, and they are sent: the server sees all of it (exchange=u_shaped keeps it on the"
        " clients)"
    )

    def __init__(self, context: int = 64, label_smoothing: float = 0.0, sample_bytes: int = 300):
        if type(context) is not int or context < 1:
            raise ValueError(f"context={context} must be a whole number, at least 1")
        check_smoothing(label_smoothing)
        if type(sample_bytes) is not int or sample_bytes < 0:
            raise ValueError(f"sample_bytes={sample_bytes} must be a whole number, at least 0")
        self.context, self.label_smoothing, self.sample_bytes = context, label_smoothing, sample_bytes
        self.bytes_per_token = 1.0

    def check(self, cfg: DictConfig) -> None:
        if cfg.data.get("name") not in texts.NAMES:
            raise UserError(f"data={cfg.data.get('name')} is no text: task=causal_lm needs {' or '.join(texts.NAMES)}")

    # Data

    def load(self, cfg: DictConfig, client: int, num_clients: int) -> ClientData:
        return self._sized(client_data(*self._build(cfg), client, num_clients, cfg))

    def load_test(self, cfg: DictConfig) -> ClientData:
        return self._sized(test_data(*self._build(cfg), cfg))

    def _build(self, cfg: DictConfig) -> tuple[Any, Any, dict[str, Any]]:
        tokenizer = tokenizer_from(cfg.data.tokenizer)
        found = texts.build(cfg.data, tokenizer, self.context)
        train = limited(found.train, cfg.data.max_train_samples, cfg.seed)
        test = limited(found.test, cfg.data.max_test_samples, cfg.seed)
        return train, test, self._about(tokens.about_of(tokenizer))

    def _about(self, of_tokens: dict[str, Any]) -> dict[str, Any]:
        return {**of_tokens, "context": self.context, "bytes_per_token": 1.0, "test_tokens": 0}

    def _sized(self, data: ClientData) -> ClientData:
        """Says how many tokens are predicted of its test windows, and how many bytes one of them stands for."""
        samples = data.test.dataset
        if num_tokens := self.units(len(samples)):
            found = (within(samples.dataset, int(index)) for index in samples.indices)
            num_bytes = sum(int(windows.num_bytes[number]) for windows, number in found)
            data.about.update(bytes_per_token=num_bytes / num_tokens, test_tokens=num_tokens)
        return data

    def check_about(self, about: Any) -> None:
        if not isinstance(about, dict) or about.keys() != self._about(tokens.about_of(Bytes())).keys():
            raise ValueError("it does not say which tokens there are, how many a window has, and nothing else")
        tokens.check_about(about)
        if type(about["context"]) is not int or about["context"] != self.context:
            raise ValueError(f"its windows do not have {self.context} tokens")
        if type(about["bytes_per_token"]) is not float or not 0 < about["bytes_per_token"] <= MAX_BYTES_PER_TOKEN:
            raise ValueError(f"bytes_per_token is not a number up to {MAX_BYTES_PER_TOKEN:.0f}")
        if type(about["test_tokens"]) is not int or not 0 <= about["test_tokens"] <= MAX_TOKENS:
            raise ValueError(f"test_tokens is not a number from 0 to {MAX_TOKENS}")

    def disagreement(self, one: dict[str, Any], other: dict[str, Any]) -> str | None:
        return tokens.disagreement(one, other)

    def together(self, abouts: list[dict[str, Any]]) -> dict[str, Any]:
        return self.tested(abouts[0], abouts)

    def tested(self, about: dict[str, Any], abouts: list[dict[str, Any]]) -> dict[str, Any]:
        num_tokens = sum(one["test_tokens"] for one in abouts)
        num_bytes = sum(one["bytes_per_token"] * one["test_tokens"] for one in abouts)
        return about | {"bytes_per_token": num_bytes / num_tokens if num_tokens else 1.0, "test_tokens": num_tokens}

    def know(self, about: dict[str, Any]) -> None:
        self.bytes_per_token = about["bytes_per_token"]

    def default_about(self, cfg: DictConfig) -> dict[str, Any]:
        return self._about(tokens.default_about(cfg.data.tokenizer))

    def details(self, cfg: DictConfig, about: dict[str, Any]) -> str:
        return f"{about['vocab_size']:,} different tokens ({cfg.data.tokenizer}), windows of {self.context}"

    def headline(self, cfg: DictConfig) -> tuple[str, str]:
        return networks.headline(cfg)

    # Network

    def example(self, cfg: DictConfig) -> Tensor:
        return networks.example_of(self.context)

    def network(self, cfg: DictConfig, about: dict[str, Any]) -> nn.Module:
        with torch_drawing_from(cfg.seed):
            return networks.build(cfg.arch, about["vocab_size"], self.context)

    def pretrain(self, cfg: DictConfig, model: nn.Module, about: dict[str, Any]) -> list[str]:
        return hf.load(cfg.arch, model) if cfg.arch.name == "hf" and cfg.arch.model else []

    def check_outputs(self, cfg: DictConfig, outputs: Tensor, about: dict[str, Any]) -> None:
        expected = 2, self.context, about["vocab_size"]
        if tuple(outputs.shape) != expected:
            found, needed = ("×".join(map(str, shape)) for shape in (outputs.shape, expected))
            raise UserError(f"arch {cfg.arch.name} gives a {found} tensor, where {needed} is needed")

    def cut_path(self, cfg: DictConfig, cut: str, model: nn.Module) -> str:
        return networks.cut_path(cut, model, self.example(cfg))

    def last_cut(self, model: nn.Module) -> str | None:
        return networks.last_cut(model)

    # A batch

    def pack(self, targets: Tensor) -> Tensor:
        largest = int(targets.max())
        return targets.to("cpu", next(dtype for dtype, end in DTYPES.items() if largest < end))

    def check_targets(self, packed: Any, about: dict[str, Any], max_samples: int) -> None:
        if not isinstance(packed, Tensor) or packed.dtype not in DTYPES:
            raise ValueError("the targets are no tensor of tokens")
        if not is_as_sent(packed):
            raise ValueError("the targets are no plain tensor on the CPU")
        if packed.dim() != 2 or packed.shape[1] != self.context or not 1 <= len(packed) <= max_samples:
            raise ValueError(
                f"the targets have the shape {'×'.join(map(str, packed.shape))}, where a batch has 1 to {max_samples}"
                f" windows of {self.context} tokens"
            )
        lowest, highest = (int(token) for token in packed.long().aminmax())
        if not 0 <= lowest <= highest < about["vocab_size"]:
            raise ValueError(f"the targets are from {lowest} to {highest}; there are {about['vocab_size']} tokens")

    def units(self, num_samples: int) -> int:
        return num_samples * self.context

    # What is optimised and measured

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.float().flatten(0, 1), targets.flatten(), label_smoothing=self.label_smoothing)

    @torch.no_grad()
    def score(self, outputs: Tensor, targets: Tensor, names: Iterable[str]) -> dict[str, float]:
        names, found = set(names), {}
        if names - {"accuracy"}:
            nats = F.cross_entropy(outputs.float().flatten(0, 1), targets.flatten(), reduction="sum").item()
            nats /= targets.shape[1]  # a sample's is the mean over its tokens
            found = {"loss": nats, "perplexity": nats, "bits_per_byte": nats / math.log(2) / self.bytes_per_token}
        if "accuracy" in names:
            found["accuracy"] = (outputs.argmax(2) == targets).sum().item() / targets.shape[1]
        return {name: value for name, value in found.items() if name in names}

    # For people

    def demonstrate(self, cfg: DictConfig, model: Callable[[], nn.Module]) -> str:
        if not self.sample_bytes:
            return ""
        num_tokens = math.ceil(self.sample_bytes / self.bytes_per_token)
        for opening in OPENINGS:
            try:
                return self.written(cfg, model(), opening, num_tokens, TEMPERATURE, cfg.seed)
            except UserError:  # a server need not have the tokenizer, nor a tokenizer a token for white space
                continue
        return ""

    def written(
        self, cfg: DictConfig, model: nn.Module, prompt: str, num_tokens: int, temperature: float, seed: int
    ) -> str:
        """What the network writes after a prompt (see gpt.generate).

        Raises:
            UserError: the tokenizer cannot be loaded, or the prompt has no token.
        """
        tokenizer = tokenizer_from(cfg.data.tokenizer)
        start = torch.from_numpy(tokenizer.encode(prompt.encode())).long()
        if not len(start):
            raise UserError("the prompt has no token: give one or more letters")
        return tokenizer.decode(generate(model, start, num_tokens, self.context, temperature, seed).tolist())
