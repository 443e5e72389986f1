"""Decodes bytes that no encoder made, to see that each is refused with PayloadError or decoded to what it states.

    python scripts/benchmarks/fuzz_payloads.py --count 1000000 --seed 0

Valid payloads of every compressor, over options, shapes and dtypes, are mutated (tests/compressors/mutations.py): cut,
extended, spliced, with other bits, bytes or sections, with headers that lie. Half of them get the right checksum, as a
peer that lies would send. The compressor that each was made for parses and decodes it, in half of the cases knowing the
shape to expect, and so does another one: one of the codec that the header names, or any. Two tables count what came of
it: refused, decoded to the stated shape and dtype with values that are finite or not, or anything else. Of that the
first case of each kind is shown, and the exit status is 1.

The address space is limited to 256 MiB more than the valid payloads need, so that memory that is asked for because a
header says so fails, and counts as anything else.
"""

import argparse
import resource
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from random import Random

import torch
from common import ROOT, markdown, start

sys.path.insert(0, str(ROOT / "tests" / "compressors"))

from mutations import MUTATIONS, Sample, samples, variants
from wires import FIELDS, PREFIX_NBYTES, has_right_checksum, mended, stated, to_tensor

from splitlearn.compressors import REGISTRY, Compressor, Payload
from splitlearn.errors import PayloadError
from splitlearn.kernels import blocks

OUTCOMES = REFUSED, FINITE, NOT_FINITE, ELSE = ("PayloadError", "decoded, finite", "decoded, not finite", "else")
CODEC = FIELDS["codec"][0]
Expected = tuple[torch.Size, torch.dtype] | None
BLOCKS = (64, blocks.CPU_BLOCK)  # so that small payloads are decoded in one block and in several
SHOWN = 5  # kinds of anything else
ROOM_NBYTES = 256 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    valid = {name: [sample for one in variants(name) for sample in samples(one)] for name in REGISTRY}
    for one in (one for found in valid.values() for one in found):
        if outcome(one.wire, one.compressor, (one.shape, one.dtype))[0] != FINITE:
            sys.exit(f"a valid payload of {one.compressor.label}, {one.dtype} {tuple(one.shape)}, is not decoded")
    limit_memory()

    started = time.perf_counter()
    counts, shown = fuzz(valid, Random(arguments.seed), arguments.count)
    seconds = time.perf_counter() - started
    print(table("decoded by", list(valid), 0, counts) + "\n\n" + table("mutation", list(MUTATIONS), 1, counts) + "\n")
    num_else = sum(count for key, count in counts.items() if key[2] == ELSE)
    print(
        f"{arguments.count:,} cases, {counts.total():,} decodes, {seconds:.1f} s,"
        f" {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB; anything else: {num_else:,}"
    )
    print(*shown, sep="\n")
    sys.exit(num_else > 0)


def fuzz(valid: dict[str, list[Sample]], rng: Random, count: int) -> tuple[Counter, list[str]]:
    """Counts of (compressor, mutation, outcome), and the first cases of anything else."""
    names, mutations = list(valid), list(MUTATIONS.items())
    everyone = [sample for found in valid.values() for sample in found]
    readers = {found[0].compressor.codec: found[0].compressor for found in valid.values()}
    counts: Counter = Counter()
    shown: dict[str, str] = {}
    for _ in range(count):
        # Every compressor gets its share, however many options it has.
        one = rng.choice(valid[rng.choice(names)])
        other = rng.choice(everyone if rng.random() < 0.5 else valid[one.compressor.name])
        mutation, mutate = rng.choice(mutations)
        wire = mutate(rng, one, other)
        if rng.random() < 0.5 and len(wire) >= PREFIX_NBYTES:
            wire = mended(wire)
        expected = (one.shape, one.dtype) if rng.random() < 0.5 else None
        receiver = readers.get(wire[CODEC]) if len(wire) > CODEC and rng.random() < 0.5 else None
        blocks.CPU_BLOCK = rng.choice(BLOCKS)
        for compressor, told in ((one.compressor, expected), (receiver or other.compressor, None)):
            what, why = outcome(wire, compressor, told)
            counts[compressor.name, mutation, what] += 1
            if what == ELSE and len(shown) < SHOWN:
                shown.setdefault(why, f"\n{compressor.label}, {mutation}, expecting {told}: {wire.hex()}\n{why}")
    return counts, list(shown.values())


def outcome(wire: bytes | bytearray, compressor: Compressor, expected: Expected = None) -> tuple[str, str]:
    """What comes of receiving these bytes, one of OUTCOMES, and for anything else why."""
    try:
        payload = Payload.parse(to_tensor(wire))
        decoded = compressor.decode(payload, "cpu", expected)
    except PayloadError:
        return REFUSED, ""
    except Exception:
        return ELSE, traceback.format_exc(limit=-3)
    if not has_right_checksum(wire):
        return ELSE, "decoded with a wrong checksum"
    shape_and_dtype = decoded.shape, decoded.dtype
    if shape_and_dtype != stated(wire) or (expected and shape_and_dtype != expected):
        return ELSE, f"decoded to {shape_and_dtype}, where {stated(wire)} is stated"
    return FINITE if decoded.isfinite().all() else NOT_FINITE, ""


def table(title: str, names: list[str], column: int, counts: Counter) -> str:
    sums: Counter = Counter()
    for key, count in counts.items():
        sums[key[column], key[2]] += count
        sums["all", key[2]] += count
    rows = [[name, *(f"{sums[name, what]:,}" for what in OUTCOMES)] for name in [*names, "all"]]
    return markdown([title, *OUTCOMES], rows)


def limit_memory() -> None:
    statm = Path("/proc/self/statm")
    if statm.exists():  # on Linux
        used = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + ROOM_NBYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))


if __name__ == "__main__":
    start(main)
