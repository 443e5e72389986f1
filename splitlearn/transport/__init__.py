"""All that knows torch.distributed.rpc: how ranks meet, and how a call reaches the server.

How it works: the server holds an RRef to the object with its inbox, and a call is one RPC to it. A handler thread puts
the call into the server's inbox and returns a future; the server's main thread takes requests from the inbox in the
order that its own program asks for them, and answers. Calls are numbered by the client, sent again where no answer
comes, and applied once (see inbox.py). Every call is signed with a key of the client's connection to the front desk,
and a message can name nothing but `deliver` (see guard.py).
"""

from splitlearn.transport.connection import connect
from splitlearn.transport.files import allow_files
from splitlearn.transport.guard import refusals
from splitlearn.transport.inbox import Inbox, Request
from splitlearn.transport.place import Patience, Place, is_loopback, rank_name
from splitlearn.transport.proxy import ServerProxy
from splitlearn.transport.store import host_store, left_open
from splitlearn.transport.tls import Tls, has_certificates, tls_from
from splitlearn.transport.token import read_token

__all__ = [
    "Inbox",
    "Patience",
    "Place",
    "Request",
    "ServerProxy",
    "Tls",
    "allow_files",
    "connect",
    "has_certificates",
    "host_store",
    "is_loopback",
    "left_open",
    "rank_name",
    "read_token",
    "refusals",
    "tls_from",
]
