import pytest

from splitlearn.transport.frontdesk import FrontDesk


@pytest.fixture
def desk(free_port):
    desk = FrontDesk("127.0.0.1", 0, f"127.0.0.1:{free_port}", num_clients=2, token=b"secret")
    yield desk
    desk.close()
