"""A plain small transformer encoder that tells texts apart; cut after its embedding, a block, or its mean."""

from __future__ import annotations

from torch import Tensor, nn

from splitlearn.segments.forward import ENDED
from splitlearn.tasks.language.gpt import Block, Embedding, start


class Encoder(nn.Module):
    """The blocks of a GPT, in which each position sees all of its text: (B, T) int64 tokens to (B, classes) scores.

    A position that a text has not got, -1, is seen by none, and is not in the mean that the scores are computed from.

    Args:
        vocab_size: tokens that there are.
        context: positions of the longest text.
        num_classes: that texts are of.
        depth, width, heads, dropout: as of GPT.

    Raises:
        ValueError: width is no multiple of heads.
    """

    blocks_path = "blocks"  # where its blocks are, for cuts by their numbers
    heads_paths = ("head",)  # what trains beside adapters

    def __init__(
        self,
        vocab_size: int,
        context: int,
        num_classes: int,
        depth: int = 4,
        width: int = 128,
        heads: int = 4,
        dropout: float = 0.0,
    ):
        if width % heads:
            raise ValueError(f"width={width} must be a multiple of heads={heads}")
        super().__init__()
        self.embedding = Embedding(vocab_size, context, width, dropout)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.mean = Mean()
        self.head = nn.Linear(width, num_classes)
        start(self, depth)

    def forward(self, tokens: Tensor) -> Tensor:
        is_there = tokens != ENDED
        x = self.embedding(tokens.clamp(min=0))
        for block in self.blocks:
            x = block(x, is_there[:, None, None])
        return self.head(self.mean(self.norm(x), is_there))


class Mean(nn.Module):
    """Over the positions that are there: (B, T, width) and (B, T) bool to (B, width)."""

    def forward(self, x: Tensor, is_there: Tensor) -> Tensor:
        weights = is_there.unsqueeze(2).to(x.dtype)
        return (x * weights).sum(1) / weights.sum(1)
