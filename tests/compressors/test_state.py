"""Codecs that go by what was sent before: what a sender knows is what a receiver needs to go on."""

import pytest
import torch

from splitlearn.compressors import Payload
from splitlearn.compressors.base import PRESETS
from splitlearn.exchange.wayback import encode


def goes_by_earlier_ones(cls, options) -> bool:
    made = cls(**options)
    return made.keeps_state and not made.is_linked


STATEFUL = {name: made for name, made in PRESETS.items() if goes_by_earlier_ones(*made)}
STATEFUL["qu of klt"] = PRESETS["qu"][0], {"transform": "klt"}


def maps(dtype: torch.dtype):
    """Batches of one direction more than of others, of different sizes, as training has them."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(8, 8, generator=generator)
    for number, size in enumerate([16, 16, 7, 16, 16, 1, 16, 16]):
        x = torch.randn(size, 6, 6, 8, generator=generator) @ (mixing + 0.1 * number)
        yield x.movedim(3, 1).relu().to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", STATEFUL)
def test_a_receiver_may_go_on_from_what_the_sender_knows(name, dtype):
    cls, options = STATEFUL[name]
    sender, measures, receiver = (cls(**options) for _ in range(3))
    for number, x in enumerate(maps(dtype)):
        late = cls(**options)
        late.load_state_dict(sender.state_dict())
        wire = sender.encode(x).tensor
        found = receiver.decode(Payload.parse(wire))
        assert torch.equal(late.decode(Payload.parse(wire)), found)
        assert sender.flaw_of(sender.state_dict(), (1, *x.shape[1:])) is None
        payload, _, decoded = encode(measures, x, "straight_through", wants_decoded=number % 3 > 0)
        assert torch.equal(payload.tensor, wire)
        assert decoded is None or torch.equal(decoded, found)
