import socket

import pytest
import torch
from simulation import compose

import splitlearn.models  # noqa: F401  registers the config groups


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.fixture(scope="session")
def config():
    """config("key=value", …): the configuration that launch.py would get."""
    return compose


@pytest.fixture(scope="session")
def noise():
    """noise(shape, seed, dtype): normal values, of which `relu=True` keeps the positive ones."""

    def make(*shape, seed=0, dtype=torch.float32, relu=False):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
        return x.relu() if relu else x

    return make
