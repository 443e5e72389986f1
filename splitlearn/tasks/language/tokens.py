"""How a text becomes tokens, and tokens a text: bytes, or a tokenizer's folder."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from splitlearn.errors import UserError

BYTES = "bytes"


class Bytes:
    """Each byte is a token: 256 of them, and any file is a text.

    Attributes:
        vocab_size: tokens that there are.
        digest: a word that tokenizers of other tokens do not have.
    """

    vocab_size, digest = 256, BYTES

    def encode(self, text: bytes) -> np.ndarray:
        """(N) tokens, in an integer dtype that torch has."""
        return np.frombuffer(text, np.uint8).copy()  # torch wants to write

    def decode(self, tokens: list[int]) -> str:
        return bytes(tokens).decode(errors="replace")


class Trained:
    """A trained tokenizer, as the library tokenizers keeps it in tokenizer.json; texts have to be UTF-8.

    Raises:
        UserError: the file or the library is not there.
    """

    def __init__(self, folder: str):
        path = Path(folder).expanduser()
        path = path / "tokenizer.json" if path.is_dir() else path
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise UserError(f"data.tokenizer={folder} needs the package tokenizers: pip install -e '.[hf]'") from None
        try:
            text = path.read_text(encoding="utf-8")
            self._tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # of the library, which has none of its own
            why = str(error).split("\n")[0]
            raise UserError(
                f"data.tokenizer={folder} cannot be loaded ({why}): set it to bytes, or to a folder with a"
                " tokenizer.json"
            ) from None
        self.vocab_size = self._tokenizer.get_vocab_size()
        self.digest = hashlib.sha256(text.encode()).hexdigest()[:32]

    def encode(self, text: bytes) -> np.ndarray:
        """
        Raises:
            UnicodeDecodeError: it is no UTF-8.
        """
        return np.array(self._tokenizer.encode(text.decode(), add_special_tokens=False).ids, np.int32)

    def decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens)


def tokenizer_from(name: str) -> Bytes | Trained:
    """The tokenizer that data.tokenizer names: bytes, or a folder.

    Raises:
        UserError: it cannot be loaded.
    """
    return Bytes() if name == BYTES else Trained(name)
