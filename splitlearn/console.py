"""Output that cannot be shown never ends a run."""

from __future__ import annotations

import os
import select
import sys
from contextlib import suppress
from typing import TextIO

import rich.console


def forgive(*streams: TextIO | None) -> None:
    """Lets streams show as ? what their terminal's encoding lacks, such as × in ASCII."""
    for stream in streams:
        if stream is not None:  # as one that the shell has closed is
            stream.reconfigure(errors="replace")


def legible(text: str, most: int = 4096) -> str:
    """What others have said, for a console or a log: one line, of so many letters at most, that commands nothing.

    A sentence of theirs ends with what to do, after paths that may be long.
    """
    shown = "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text[: most + 1])
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"


def drop_output() -> None:
    """Sends what is printed from now on nowhere, since nobody reads it any more, as after `| head`."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def complain(text: object) -> None:
    """A line on stderr, which may be a terminal that is gone, or a file on a full disk."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def is_unread() -> bool:
    """Whether nobody reads what is printed any more: the other end of its pipe is closed."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


class Console(rich.console.Console):
    """Rich's, which goes on in silence where rich would end the program: nobody reads it, or it has no room."""

    def _check_buffer(self) -> None:  # where rich writes
        try:
            super()._check_buffer()
        except OSError:
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        self.quiet = True
        drop_output()
