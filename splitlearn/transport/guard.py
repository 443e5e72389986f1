"""Who may call a rank, and what may be said to it: here is counted what was refused.

RPC by itself runs whatever reaches its port: pickles that name any function, and torch's operators by name. Within
`unpickler.closed`, a message can name only the project's own functions, plain tensors and numbers, and no operator at
all (see operators.py). And every call must be signed: HMAC-SHA256 over what the call is, with a key that comes of the
token that all ranks have (see token.py) and of what was drawn when the client signed in (see handshake.py). The token
itself is never sent.

What stays open: nothing is encrypted, and random bytes can end the process. So a network that others can reach needs a
tunnel or a firewall (see docs/reliability.md).
"""

import logging
from collections import Counter

log = logging.getLogger("splitlearn")
refusals: Counter[str] = Counter()  # of this process, by what was refused


def refuse(what: str, detail: str) -> None:
    """Counts and logs something that was refused."""
    refusals[what] += 1
    log.warning("refused %s: %s", what, detail)
