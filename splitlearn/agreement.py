"""What a client's requests hold, by their kind: nobody is trusted to send what was agreed.

A client that has the token may still be broken, or not be ours. So the server looks at each body before anything uses
it: how many parts there are, of what type, and each tensor's shape and dtype, as the server knows them from building
the network itself. It takes microseconds a step. What a payload holds, says `Compressor.decode`.
"""

from __future__ import annotations

from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor, nn

from splitlearn.compressors import Payload
from splitlearn.errors import PeerError
from splitlearn.segments import CutPoint

PLAIN = (str, int, float, bool, type(None))
PHASES = {"client compute", "codec", "call", "waiting", "network"}  # that a client measures
LABELS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
MAX_SECONDS = 1e12
MAX_CLASSES = 1 << 20  # what a hello may make the server build
NUM_PARTS = {
    "hello": 1,
    "failed": 1,
    "goodbye": 0,
    "step": 4,
    "evaluate": 2,
    "gradients": 1,
    "weights": 2,
    "state": 2,
}
HELLO = {"config", "num_classes", "num_train", "num_test"}


class Agreement:
    """Checks requests against the run's configuration and, once they are known, the segments."""

    def __init__(self, cfg: DictConfig):
        self.cfg = cfg

    def know(self, client_segment: nn.Module, cut: CutPoint, num_classes: int) -> None:
        """The network is built."""
        self.cut, self.num_classes = cut, num_classes
        # Whether a layer gives bfloat16 under autocast depends on the layer and the client's device.
        mixed = self.cfg.precision == "bf16" and self.cfg.cut_precision is None
        self.dtypes = (torch.bfloat16, torch.float32) if mixed else (cut.dtype,)
        self.segment = {name: like(tensor) for name, tensor in client_segment.state_dict().items()}
        self.gradients = [like(parameter) for parameter in client_segment.parameters()]
        self.optimizer = optimizer_state(client_segment, self.cfg)

    def check(self, client: int, kind: str, body: Any, holds: str | None = None) -> None:
        """Looks at a request's body.

        Args:
            client: that sent it.
            kind: of the request.
            body: of the request.
            holds: what its first part is, where the kind does not say: "segment", "trainable", or None for nothing.

        Raises:
            PeerError: it is not what was agreed; says what is wrong.
        """
        try:
            if not isinstance(body, tuple) or len(body) != NUM_PARTS[kind]:
                raise Unfit(f"it does not have {NUM_PARTS[kind]} parts")
            getattr(self, f"_{kind}")(*body, *([holds] if kind == "weights" else []))
        except Unfit as unfit:
            raise PeerError(f"client {client} sent a malformed {kind}: {unfit}") from None

    def dtype_of(self, payload: Payload) -> torch.dtype:
        """The dtype that a payload has to be of."""
        return payload.dtype if payload.dtype in self.dtypes else self.dtypes[0]

    # One method a kind, with the body's parts as arguments

    def _hello(self, about: Any) -> None:
        if not (isinstance(about, dict) and about.keys() == HELLO and isinstance(about["config"], dict)):
            raise Unfit("it does not say configuration, classes and samples")
        if not all(isinstance(key, str) and is_plain(value) for key, value in about["config"].items()):
            raise Unfit("its configuration is not one of keys and plain values")
        for name, low, high in (("num_classes", 1, MAX_CLASSES), ("num_train", 0, 1 << 53), ("num_test", 0, 1 << 53)):
            if type(about[name]) is not int or not low <= about[name] <= high:
                raise Unfit(f"{name} is not a number from {low} to {high}")

    def _failed(self, why: Any) -> None:
        if not isinstance(why, str):
            raise Unfit("the reason is no text")

    def _goodbye(self) -> None:
        pass

    def _step(self, wire: Any, labels: Any, error: Any, wants_to_stop: Any) -> None:
        if type(wants_to_stop) is not bool:
            raise Unfit("whether it wants to stop is no bool")
        if error is not None and not (isinstance(error, float) and error >= 0):  # which NaN is not
            raise Unfit("the compression error is no number from 0")
        if wire is None and labels is None and self.cfg.nonfinite == "skip":
            return
        self._evaluate(wire, labels)

    def _evaluate(self, wire: Any, labels: Any) -> None:
        if not isinstance(wire, Tensor) or not is_like(wire, (torch.Size([wire.numel()]), torch.uint8)):
            raise Unfit("the payload is no 1-D uint8 tensor on the CPU")
        if not isinstance(labels, Tensor) or labels.dim() != 1 or labels.dtype not in LABELS:
            raise Unfit("the labels are no 1-D integer tensor")
        if not is_like(labels, like(labels)) or not 1 <= len(labels) <= self.cfg.batch_size:
            raise Unfit(f"there are {len(labels)} labels; batch_size={self.cfg.batch_size}")
        lowest, highest = (int(label) for label in labels.aminmax())
        if not 0 <= lowest <= highest < self.num_classes:
            raise Unfit(f"the labels are from {lowest} to {highest}; there are {self.num_classes} classes")

    def _gradients(self, gradients: Any) -> None:
        if gradients is None:  # its batch was left out, or it has no more
            return
        if not isinstance(gradients, list) or len(gradients) != len(self.gradients):
            raise Unfit(f"it has no list of {len(self.gradients)} gradients")
        if not all(map(is_like, gradients, self.gradients)):
            raise Unfit("its gradients do not have the shapes and dtypes of the client segment's parameters")

    def _weights(self, state: Any, seconds: Any, holds: str | None) -> None:
        if not isinstance(seconds, dict) or not seconds.keys() <= PHASES:
            raise Unfit(f"its times are not those of {', '.join(sorted(PHASES))}")
        if not all(type(value) in (int, float) and abs(value) < MAX_SECONDS for value in seconds.values()):
            raise Unfit("its times are no numbers of seconds")
        if holds == "trainable":
            self._trainable(state)
        elif holds == "segment":
            self._segment(state)
        elif state is not None:
            raise Unfit("it has weights that nobody asked for")

    def _state(self, state: Any, leaves: Any) -> None:
        if type(leaves) is not bool:
            raise Unfit("whether it leaves is no bool")
        self._trainable(state)

    def _segment(self, state: Any) -> None:
        if not isinstance(state, dict) or state.keys() != self.segment.keys():
            raise Unfit("its weights do not have the names of the client segment's")
        for name, expected in self.segment.items():
            if not is_like(state[name], expected):
                raise Unfit(f"{name} is no {expected[1]} tensor of shape {tuple(expected[0])}")

    def _trainable(self, state: Any) -> None:
        if not isinstance(state, dict) or state.keys() != {"segment", "optimizer"}:
            raise Unfit("it does not hold a segment and an optimizer's state")
        self._segment(state["segment"])
        kept = state["optimizer"]
        if not isinstance(kept, dict) or not kept.keys() <= self.optimizer.keys():  # fewer: without gradients yet
            raise Unfit("its optimizer's state is not one of the client segment's parameters")
        for index, values in kept.items():
            expected = self.optimizer[index]
            if not isinstance(values, dict) or values.keys() != expected.keys():
                raise Unfit(f"its optimizer does not keep {', '.join(expected)} for parameter {index}")
            if not all(is_like(values[name], expected[name]) for name in expected):
                raise Unfit(f"what its optimizer keeps for parameter {index} has other shapes or dtypes")


class Unfit(Exception):
    """What is wrong with a body."""


def like(value: Any) -> Any:
    """What `is_like` compares with: a tensor's shape and dtype, or another value's type."""
    return (value.shape, value.dtype) if isinstance(value, Tensor) else type(value)


def is_like(value: Any, expected: Any) -> bool:
    """Whether it is a plain tensor on the CPU of this shape and dtype, or a value of this type."""
    if not isinstance(value, Tensor):
        return type(value) is expected
    is_as_sent = value.device.type == "cpu" and value.layout == torch.strided and not value.requires_grad
    return is_as_sent and (value.shape, value.dtype) == expected


def is_plain(value: Any, depth: int = 8) -> bool:
    """Whether it is a word, a number, or lists and dicts of these."""
    if isinstance(value, (list, dict)) and depth:
        items = value if isinstance(value, list) else [*value.keys(), *value.values()]
        return all(is_plain(item, depth - 1) for item in items)
    return type(value) in PLAIN


def optimizer_state(segment: nn.Module, cfg: DictConfig) -> dict[int, dict[str, Any]]:
    """What the optimizer keeps of each parameter (see `like`), found by a step of its own on as many zeros."""
    parameters = [nn.Parameter(torch.zeros_like(parameter)) for parameter in segment.parameters()]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer = instantiate(cfg.optimizer, parameters, _convert_="all")
    optimizer.step()
    state = optimizer.state_dict()["state"]
    return {index: {name: like(value) for name, value in kept.items()} for index, kept in state.items()}
