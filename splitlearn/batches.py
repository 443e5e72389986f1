"""How many samples a client's batches have: both sides know it from their number."""

from __future__ import annotations

LAST_BATCH = ("keep", "merge", "drop")


def batch_sizes(num_samples: int, batch_size: int, last_batch: str = "keep") -> list[int]:
    """The samples of each batch of an epoch.

    Args:
        num_samples: of the client.
        batch_size: samples of a batch, but for the last one.
        last_batch: what becomes of one that is not full: "keep"; "merge" puts one of at most half a batch into the
            one before, if there is one; "drop" leaves it out.
    """
    num_full, rest = divmod(num_samples, batch_size)
    sizes = [batch_size] * num_full
    if rest and last_batch == "merge" and sizes and 2 * rest <= batch_size:
        sizes[-1] += rest
    elif rest and last_batch != "drop":
        sizes.append(rest)
    return sizes


def largest_batch(batch_size: int, last_batch: str = "keep") -> int:
    """Samples that a batch has at most."""
    return batch_size + batch_size // 2 if last_batch == "merge" else batch_size
