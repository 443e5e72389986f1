from functools import cache

import pytest

from splitlearn.transport.entry import Way
from splitlearn.transport.frontdesk import FrontDesk
from splitlearn.transport.tls import Tls, tls_of_token

TOKEN = b"secret"


@cache
def tls(rank: str, token: bytes = TOKEN) -> Tls:
    return tls_of_token(rank, token)


@pytest.fixture(params=["plain", "encrypted"])
def desk(free_port, request):
    """A front desk, and as `desk.way` what a client finds it with."""
    is_plain = request.param == "plain"
    here = None if is_plain else tls("server")
    desk = FrontDesk("127.0.0.1", 0, lambda: f"127.0.0.1:{free_port}", num_clients=2, token=TOKEN, tls=here)
    desk.way = Way("127.0.0.1", desk.port, None if is_plain else tls("client0"))
    yield desk
    desk.close()
