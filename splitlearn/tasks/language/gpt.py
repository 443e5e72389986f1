"""A plain small GPT, which can be cut after its embedding, each of its blocks, and its last norm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STD = 0.02  # of all weights at the start


class GPT(nn.Module):
    """Pre-norm transformer decoder with learned positions: (B, T) int64 tokens to (B, T, V) scores of the next ones.

    Source: Radford et al. 2019, "Language models are unsupervised multitask learners" (GPT-2), of which it has the
    order of layers and the start of the weights; without bias in the head, which is not tied to the embedding.

    Args:
        vocab_size: V, tokens that there are.
        context: tokens that it takes at once; T is at most that.
        depth: blocks.
        width: of the hidden states.
        heads: of the attention in each block.
        dropout: share of what the embedding and each half of a block give that is left out in training.

    Raises:
        ValueError: width is no multiple of heads.
    """

    blocks_path = "blocks"  # where its blocks are, for cuts by their numbers

    def __init__(
        self, vocab_size: int, context: int, depth: int = 4, width: int = 128, heads: int = 4, dropout: float = 0.0
    ):
        if width % heads:
            raise ValueError(f"width={width} must be a multiple of heads={heads}")
        super().__init__()
        self.embedding = Embedding(vocab_size, context, width, dropout)
        self.blocks = nn.Sequential(*(Block(width, heads, dropout) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab_size, bias=False)
        start(self, depth)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embedding(tokens))))


def start(model: nn.Module, depth: int) -> None:
    """Draws the weights of a model of so many blocks; those that end a residual branch are the smaller, the more."""
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            is_last_of_residual = name.endswith(("attention.out.weight", "feedforward.2.weight"))
            nn.init.normal_(parameter, std=STD / (2 * depth) ** 0.5 if is_last_of_residual else STD)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


class Embedding(nn.Module):
    """The sum of a vector for each token and one for each position: (B, T) int64 to (B, T, width)."""

    def __init__(self, vocab_size: int, context: int, width: int, dropout: float):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab_size, width), nn.Embedding(context, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.dropout(self.tokens(tokens) + self.positions.weight[: tokens.shape[1]])


class Block(nn.Module):
    """Attention and a feedforward net of four times the width, each after a norm and beside a skip connection."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.feedforward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x), mask))
        return x + self.dropout(self.feedforward(self.norm2(x)))


class Attention(nn.Module):
    """Each position looks at itself and those before it: (B, T, width) to the same.

    With a mask, (B, 1, 1, T) bool, it looks at all that are true in it.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        qkv = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (3, B, heads, T, width / heads)
        mixed = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], mask, is_causal=mask is None)
        return self.out(mixed.transpose(1, 2).flatten(2))


@torch.no_grad()
def generate(
    model: nn.Module, prompt: Tensor, num_tokens: int, context: int, temperature: float = 1.0, seed: int = 0
) -> Tensor:
    """Tokens that a language model writes after a prompt, each drawn from its scores for the next one.

    Args:
        model: (1, T) int64 to (1, T, V), in evaluation mode.
        prompt: (L) int64, at least one token.
        num_tokens: to write.
        context: tokens that the model takes at once; it sees the last ones.
        temperature: what the scores are divided by; 0 takes the likeliest token each time.
        seed: of the draws.

    Returns:
        (num_tokens) int64.
    """
    stream, tokens = torch.Generator().manual_seed(seed), prompt
    for _ in range(num_tokens):
        scores = model(tokens[None, -context:])[0, -1].float()
        if temperature == 0:
            token = scores.argmax().view(1)
        else:
            token = torch.multinomial((scores / temperature).softmax(0), 1, generator=stream)
        tokens = torch.cat([tokens, token])
    return tokens[len(prompt) :]
