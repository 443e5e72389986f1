"""How many samples there are, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NUM_EACH = 4  # clients that are named one by one


def samples_in_words(
    members: Mapping[int, Any], num_clients: int, num_of_server: int | None, are_of_epoch: bool = False
) -> str:
    """All clients' samples, and each client's where they differ or are its own.

    Args:
        members: by client, with num_train, num_test and origin of each (see Member), as far as they are known.
        num_clients: of the run.
        num_of_server: test samples of the server's own, with evaluate.on=server.
        are_of_epoch: what a member says that it trains on are those of an epoch, of which it has more.
    """
    origins = [member.origin for member in members.values() if member.origin]
    is_own, is_complete = any(origin["partition"] == "none" for origin in origins), len(members) == num_clients
    numbers = {client: (member.num_train, member.num_test) for client, member in sorted(members.items())}
    if is_complete:
        train, test = (sum(pair[i] for pair in numbers.values()) for i in range(2))
    elif origins and not is_own:
        train, test = origins[0]["num_train"], origins[0]["num_test"]
    else:
        return ""  # each says on joining what it has
    tested = f"{test:,} to test on" if num_of_server is None else f"{num_of_server:,} of the server to test on"
    text = f"{train:,} samples to train on{' in each epoch' * (are_of_epoch and is_complete)}, {tested}"
    trained = [pair[0] for pair in numbers.values()]
    if not is_complete or not (is_own or max(trained) - min(trained) > 1):
        return text
    verb = "brought" if is_own else "has"
    if num_clients <= NUM_EACH:
        return f"{text}; " + ", ".join(
            f"client {client} {verb} {pair_in_words(*numbers[client])}" for client in numbers
        )
    lowest, highest = (tuple(pick(pair[i] for pair in numbers.values()) for i in range(2)) for pick in (min, max))
    ranges = [str(low) if low == high else f"{low:,}–{high:,}" for low, high in zip(lowest, highest, strict=True)]
    return f"{text}; each client {verb} {pair_in_words(*ranges)}"


def pair_in_words(train: int | str, test: int | str) -> str:
    """How many samples a client has for training and for test."""
    return f"{train} and {test}" if test not in (0, "0") else f"{train}"


def unreadable_of(members: Mapping[int, Any], of_server: Any) -> dict[str, int]:
    """Samples that are left out since they cannot be read, by whose they are.

    Args:
        members: by client, with the origin of each's data as it told it (see tasks/origin.py).
        of_server: the Origin of its own test data; None where it has none.
    """
    whose: dict[str, Any] = {f"client {client}": member.origin for client, member in sorted(members.items())}
    whose["the server"] = of_server and vars(of_server)
    found = {who: its["unreadable_train"] + its["unreadable_test"] for who, its in whose.items() if its}
    return {who: number for who, number in found.items() if number}
