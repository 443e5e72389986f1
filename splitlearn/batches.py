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
    num_full, last = counted(num_samples, batch_size, last_batch)
    return [batch_size] * num_full + [last] * (last > 0)


def counted(num_samples: int, batch_size: int, last_batch: str = "keep") -> tuple[int, int]:
    """Batches of batch_size samples, and the samples of one more, which is the last; 0 where there is none.

    It takes no longer and no more memory for a number of samples that is made up. Arguments as above.
    """
    num_full, rest = divmod(num_samples, batch_size)
    if last_batch == "drop":
        return num_full, 0
    if last_batch == "merge" and num_full and 0 < 2 * rest <= batch_size:
        return num_full - 1, batch_size + rest
    return num_full, rest


def num_batches(num_samples: int, batch_size: int, last_batch: str = "keep") -> int:
    """Batches of an epoch. Arguments as above."""
    num_full, last = counted(num_samples, batch_size, last_batch)
    return num_full + (last > 0)


def largest_batch(batch_size: int, last_batch: str = "keep") -> int:
    """Samples that a batch has at most."""
    return batch_size + batch_size // 2 if last_batch == "merge" else batch_size
