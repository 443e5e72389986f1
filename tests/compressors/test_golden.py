"""The format of every compressor, held fast: payloads in golden/, and checksums of what they decode to.

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


def decoded_checksum(name: str, wire: bytes) -> int:
    decoded = compressor_of(name).decode(Payload.parse(torch.frombuffer(bytearray(wire), dtype=torch.uint8)))
    return zlib.crc32(decoded.reshape(-1).view(torch.uint8).numpy())


@pytest.mark.parametrize("file", FILES)
def test_the_bytes_and_what_they_decode_to_are_unchanged(file):
    name, x = FILES[file]
    assert (FOLDER / file).exists(), f"golden/{file} is missing; {REWRITE} writes it"
    golden = (FOLDER / file).read_bytes()
    assert encoded(name, x) == golden
    assert decoded_checksum(name, golden) == json.loads(CHECKSUMS.read_text())[file]


def test_there_is_no_file_without_a_compressor():
    assert {path.name for path in FOLDER.glob("*.bin")} == set(FILES) == set(json.loads(CHECKSUMS.read_text()))


def rewrite() -> None:
    FOLDER.mkdir(exist_ok=True)
    for path in FOLDER.glob("*.bin"):
        path.unlink()
    for file, (name, x) in FILES.items():
        (FOLDER / file).write_bytes(encoded(name, x))
    checksums = {file: decoded_checksum(name, (FOLDER / file).read_bytes()) for file, (name, _) in FILES.items()}
    CHECKSUMS.write_text(json.dumps(checksums, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    rewrite()
