"""Who may call a rank, and what may be said to it: here is counted what was refused.

RPC by itself runs whatever reaches its port: pickles that name any function, and torch's operators by name. Within
`unpickler.closed`, a message can name only the project's own functions, plain tensors and numbers, and no operator at
all (see operators.py). And every call must be signed: HMAC-SHA256 over what the call is, with a key that comes of the
token that all ranks have (see token.py) and of what was drawn when the client signed in (see handshake.py). The token
itself is never sent.

What stays open: random bytes on RPC's own port, which listens on the loopback alone, can end the process, and so can a
client that is let in (see docs/security.md).
"""

import logging
import threading
import time
from collections import Counter

from splitlearn.console import legible

MAX_LINES = 20  # of each kind in a minute: a stranger that tries for ever must not fill the disk
MINUTE_S = 60.0
MAX_DETAIL = 500  # letters of a line

log = logging.getLogger("splitlearn")
refusals: Counter[str] = Counter()  # of this process, by what was refused
_lines: Counter[str] = Counter()  # of this minute
_minute_began = 0.0
_lock = threading.Lock()


def refuse(what: str, detail: str) -> None:
    """Counts something that was refused, and logs it, unless there was too much of it lately."""
    global _minute_began
    with _lock:
        refusals[what] += 1
        if time.monotonic() > _minute_began + MINUTE_S:
            _minute_began = time.monotonic()
            for kind, number in _lines.items():
                if number > MAX_LINES:
                    log.warning("refused %s: %d more until now", kind, number - MAX_LINES)
            _lines.clear()
        _lines[what] += 1
        if _lines[what] > MAX_LINES:
            return
    log.warning("refused %s: %s", what, legible(detail, MAX_DETAIL))
