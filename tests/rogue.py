"""Plays a client that has the token and sends what was not agreed: tries each misdeed and prints its outcome.

python rogue.py <options as of launch.py>
"""

import os
import sys
from collections.abc import Callable
from typing import Any

os.environ["TORCH_CPP_LOG_LEVEL"] = "FATAL"

import torch
from simulation import compose

from splitlearn.errors import Rejoin, UserError
from splitlearn.roles.client import Client
from splitlearn.transport import Patience, Place, connect, read_token


def outcome_of(misdeed: Callable[[], Any], client: Client, joins: bool) -> str:
    while True:
        try:
            if joins:
                client.join()
            return f"answered {misdeed()!r}"
        except Rejoin:
            continue  # it joined within an evaluation
        except UserError as error:
            return f"{type(error).__name__}: {error}"


def main() -> None:
    cfg = compose(*sys.argv[1:])
    place = Place(1 + cfg.client.index, cfg.num_clients, cfg.rpc.host, cfg.rpc.port, is_fleet=False)
    with connect(place, Patience(20, 10, 10), read_token(cfg.rpc.token_file)) as server:
        client = Client(cfg, cfg.client.index, torch.device("cpu"), server)
        client.load_data()
        client.join()
        inputs, _ = client.task.to_device(next(iter(client.data.train)), client.device)
        map_shape, codec = client.trainable.segment(inputs).shape, client.channels["smashed"].codec
        wire = codec.encode(torch.randn(map_shape)).tensor
        labels = torch.zeros(len(inputs), dtype=torch.uint8)
        wide = codec.encode(torch.randn(map_shape).double()).tensor
        about = client.data.about
        misdeeds = {
            "hello": lambda: server.call("hello", 5, about, client.data.num_train, client.data.num_test),
            "a hello without a body": lambda: server.call("hello"),
            "a step of one part": lambda: server.call("step", 1),
            "a step without labels": lambda: server.call("step", (wire, None), {}, False),
            "float64": lambda: server.call("step", (wide, labels), {}, False),
            "weights": lambda: (client.train_batches(), server.call("weights", {"a": torch.zeros(3)}, {}, None, False)),
            "a state": lambda: server.call("state", torch.zeros(3), False),
        }
        for name, misdeed in misdeeds.items():
            print(f"{name} | {outcome_of(misdeed, client, joins='hello' not in name)[:160]}", flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
