"""How a text becomes tokens, and tokens a text: bytes, or a tokenizer's folder."""

from __future__ import annotations

import hashlib
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from splitlearn.errors import UserError

BYTES = "bytes"
MAX_VOCABULARY = 1 << 20  # what a client may make the server build
MAX_DIGEST = 64


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

    def encode_sized(self, text: bytes, share: float) -> tuple[np.ndarray, np.ndarray]:
        """As of Trained."""
        tokens = self.encode(text)
        return tokens, np.ones(round(share * len(tokens)), np.int64)

    def encode_all(self, texts: list[str], longest: int) -> tuple[list[np.ndarray], int]:
        """As of Trained."""
        found = [self.encode(text.encode()) for text in texts]
        return [tokens[:longest] for tokens in found], sum(len(tokens) > longest for tokens in found)

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
        self._tokenizer.no_padding()  # which a file may ask for, and a text of any length is not cut off
        self._tokenizer.no_truncation()
        self.vocab_size = self._tokenizer.get_vocab_size()
        self.digest = hashlib.sha256(text.encode()).hexdigest()[:32]

    def encode(self, text: bytes) -> np.ndarray:
        """
        Raises:
            UnicodeDecodeError: it is no UTF-8.
        """
        return self.encode_sized(text, 0)[0]

    def encode_sized(self, text: bytes, share: float) -> tuple[np.ndarray, np.ndarray]:
        """The tokens, (N), and of the last ones, a share of them, how many bytes of the text each stands for.

        Those between two tokens are the second one's, and those after the last one are its; so all bytes are counted.

        Raises:
            UnicodeDecodeError: it is no UTF-8.
        """
        letters = text.decode()
        found = self._tokenizer.encode(letters, add_special_tokens=False)
        tokens = np.array(found.ids, np.int32)
        first = len(tokens) - round(share * len(tokens))
        start = found.token_to_chars(first - 1)[1] if first else 0
        ends = [found.token_to_chars(number)[1] for number in range(first, len(tokens))]
        ends[-1:] = [len(letters)] * bool(ends)
        sizes = [len(letters[one:other].encode()) for one, other in pairwise(accumulate([start, *ends], max))]
        return tokens, np.array(sizes, np.int64)

    def encode_all(self, texts: list[str], longest: int) -> tuple[list[np.ndarray], int]:
        """The tokens of each text, (N), with those that the tokenizer puts around them; and how many texts are cut off.

        Args:
            texts: of which a classifier sees one at a time.
            longest: tokens of a text, at most.
        """
        self._tokenizer.enable_truncation(longest)
        found = self._tokenizer.encode_batch(texts)
        self._tokenizer.no_truncation()
        return [np.array(one.ids, np.int32) for one in found], sum(bool(one.overflowing) for one in found)

    def decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens)


def tokenizer_from(name: str) -> Bytes | Trained:
    """The tokenizer that data.tokenizer names: bytes, or a folder.

    Raises:
        UserError: it cannot be loaded.
    """
    return Bytes() if name == BYTES else Trained(name)


def about_of(tokenizer: Bytes | Trained) -> dict[str, Any]:
    """What the server is told of the tokens."""
    return {"vocab_size": tokenizer.vocab_size, "tokenizer": tokenizer.digest}


def default_about(name: str) -> dict[str, Any]:
    """The same as far as data.tokenizer says; of bytes where it is not here, as on a server, which needs none."""
    try:
        return about_of(tokenizer_from(name))
    except UserError:
        return about_of(Bytes()) | {"tokenizer": ""}


def check_about(about: dict[str, Any]) -> None:
    """Looks at what a client says that its tokens are.

    Raises:
        ValueError: it is nothing that `about_of` gives; says what is wrong.
    """
    if type(about["vocab_size"]) is not int or not 1 <= about["vocab_size"] <= MAX_VOCABULARY:
        raise ValueError(f"vocab_size is not a number from 1 to {MAX_VOCABULARY}")
    if type(about["tokenizer"]) is not str or len(about["tokenizer"]) > MAX_DIGEST:
        raise ValueError(f"its tokenizer is no word of up to {MAX_DIGEST} letters")


def disagreement(one: dict[str, Any], other: dict[str, Any]) -> str | None:
    """How the tokens of two clients, by what they say of them, differ, in words; None if they do not."""
    if (one["tokenizer"], one["vocab_size"]) == (other["tokenizer"], other["vocab_size"]):
        return None
    pair = (f"{about['tokenizer']} ({about['vocab_size']} tokens)" for about in (other, one))
    return "it has another tokenizer, {} instead of {}: set data.tokenizer to the same on all ranks".format(*pair)
