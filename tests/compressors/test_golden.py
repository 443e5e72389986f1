"""The format of every compressor, held fast: payloads in golden/, and checksums of what they decode to.

Of those that multiply matrices in decoding, which CPUs round differently in the last place, it is the values.

    python tests/compressors/test_golden.py    writes them anew

To be run after a compressor was added, or chooses otherwise what it sends. Where a file that was there before no longer
decodes to what it did, payloads of earlier versions cannot be read, and the format needs a new version number.
"""

import json
import sys
import zlib
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent / "golden"
CHECKSUMS = FOLDER / "decoded.json"  # file name: CRC-32 of the decoded tensor's bytes
VALUES = FOLDER / "decoded.pt"  # file name: the decoded tensor, of those of OF_SUMS
OF_SUMS = ("c3sl", "klt", "linked", "low_rank")
REWRITE = "python tests/compressors/test_golden.py"

if __name__ == "__main__":
    sys.path.insert(0, str(FOLDER.parents[2]))

from splitlearn.compressors import REGISTRY, Compressor, Payload  # noqa: E402


def made(dtype: torch.dtype, signed: bool) -> torch.Tensor:
    """(2, 3, 5, 7), made by integer arithmetic: multiples of 1/64 from -8 to 8, or half of them zero."""
    i = torch.arange(2 * 3 * 5 * 7)
    x = ((i * 40503 + i * i * 12347) % 1021 - 510).to(dtype) / 64
    return (x if signed else x.relu()).view(2, 3, 5, 7)


TENSORS = {
    "signed": made(torch.float32, signed=True),
    "relu": made(torch.float32, signed=False),
    "half": made(torch.float16, signed=True),
}
FILES = {f"{name}-{tensor}.bin": (name, x) for name in REGISTRY for tensor, x in TENSORS.items()}


def compressor_of(name: str) -> Compressor:
    return REGISTRY[name]().for_evaluation()  # which is not random


def encoded(name: str, x: torch.Tensor) -> bytes:
    return compressor_of(name).encode(x).tensor.numpy().tobytes()


def decoded(name: str, wire: bytes) -> torch.Tensor:
    return compressor_of(name).decode(Payload.parse(torch.frombuffer(bytearray(wire), dtype=torch.uint8)))


def checksum(x: torch.Tensor) -> int:
    return zlib.crc32(x.reshape(-1).view(torch.uint8).numpy())


@pytest.mark.parametrize("file", FILES)
def test_the_bytes_and_what_they_decode_to_are_unchanged(file):
    name, x = FILES[file]
    assert (FOLDER / file).exists(), f"golden/{file} is missing; {REWRITE} writes it"
    golden = (FOLDER / file).read_bytes()
    assert encoded(name, x) == golden
    found = decoded(name, golden)
    if name in OF_SUMS:
        expected = torch.load(VALUES)[file]
        torch.testing.assert_close(found, expected, rtol=4 * torch.finfo(expected.dtype).eps, atol=1e-6)
    else:
        assert checksum(found) == json.loads(CHECKSUMS.read_text())[file]


def test_there_is_no_file_without_a_compressor():
    kept = {*json.loads(CHECKSUMS.read_text()), *torch.load(VALUES)}
    assert {path.name for path in FOLDER.glob("*.bin")} == set(FILES) == kept


def rewrite() -> None:
    FOLDER.mkdir(exist_ok=True)
    for path in FOLDER.glob("*.bin"):
        path.unlink()
    for file, (name, x) in FILES.items():
        (FOLDER / file).write_bytes(encoded(name, x))
    found = {file: decoded(name, (FOLDER / file).read_bytes()) for file, (name, _) in FILES.items()}
    checksums = {file: checksum(x) for file, x in found.items() if FILES[file][0] not in OF_SUMS}
    CHECKSUMS.write_text(json.dumps(checksums, indent=2, sort_keys=True) + "\n")
    torch.save({file: x.clone() for file, x in found.items() if FILES[file][0] in OF_SUMS}, VALUES)


if __name__ == "__main__":
    rewrite()
