"""Connections that a router breaks on their way, and then lets pass again: the run goes on bit for bit the same."""

from contextlib import ExitStack

import pytest
from router import DESK, MUTE, RPC, Router
from runs import LAUNCH, TINY, started, wait_for
from simulation import compose
from test_resume import assert_same

from splitlearn import local

TOKEN = {"SPLITLEARN_TOKEN": "a token of the tests"}
OPTIONS = [*TINY, "batch_size=8", "num_clients=2", "epochs=3"]  # 4 batches of each client in an epoch
BOTH = DESK, RPC
AT_ALL_MOMENTS = [  # a word of a call, how often it has gone up until then, what breaks, and whether the call is lost
    ("hello", 1, BOTH, True),
    ("hello", 3, (RPC,), False),
    ("step", 3, (RPC,), True),
    ("step", 8, (RPC,), False),
    ("step", 13, (DESK,), False),
    ("step", 17, BOTH, True),
    ("evaluate", 1, (RPC,), False),
    ("evaluate", 4, BOTH, True),
    ("weights", 2, (RPC,), False),
    ("weights", 5, BOTH, False),
    ("goodbye", 1, (RPC,), False),
    ("goodbye", 3, BOTH, False),
]


@pytest.mark.slow
def test_resets_of_encrypted_connections_cost_no_step_either(tmp_path, free_port):
    """With the router in the dark about what goes up, at moments of the run."""
    options = [*OPTIONS, "tls.enabled=true", "epochs=6"]
    router, steps = Router(free_port), tmp_path / "run" / "metrics.jsonl"
    (tmp_path / "server").mkdir()
    command = [*LAUNCH, *options, "role=server", f"rpc.port={free_port}", "hydra.run.dir=../run"]
    with started(command, tmp_path / "server", **TOKEN) as server, ExitStack() as stack:
        clients = []
        for index in range(2):
            (tmp_path / f"client{index}").mkdir()
            place = ["role=client", f"client.index={index}", f"rpc.port={router.port}"]
            clients.append(
                stack.enter_context(started([*LAUNCH, *options, *place], tmp_path / f"client{index}", **TOKEN))
            )
        for step, kinds in ((3, (RPC,)), (8, (DESK,)), (13, BOTH), (18, BOTH)):
            wait_for(steps, f'"step": {step},')
            router.reset(*kinds)
        assert [rank.wait(120) for rank in (server, *clients)] == [0, 0, 0], (tmp_path / "server/out.txt").read_text()
    local.run(compose(*[option for option in options if "tls" not in option]), tmp_path / "whole")
    assert_same(tmp_path / "run", tmp_path / "whole")
    out = "".join(path.read_text() for path in tmp_path.glob("*/out.txt"))
    assert "Traceback" not in out and "the connection to the server is back" in out


def run(folder, port: int, options: list[str], breaks: list[tuple]) -> dict[str, str]:
    """Output of all ranks of a run whose connections break."""
    router = Router(port)
    for word, number, kinds, is_lost in breaks:
        router.when(word, number, *kinds, before=is_lost)
    ranks = {}
    for name in ("server", "client0", "client1"):
        (folder / name).mkdir(parents=True)
        place = ["role=server", f"rpc.port={port}", "hydra.run.dir=../run"]
        if name != "server":
            place = ["role=client", f"client.index={name[-1]}", f"rpc.port={router.port}"]
        ranks[name] = started([*LAUNCH, *options, *place], folder / name, **TOKEN)
    with ranks["server"] as server, ranks["client0"] as first, ranks["client1"] as second:
        status = [rank.wait(120) for rank in (server, first, second)]
    out = {name: (folder / name / "out.txt").read_text() for name in ranks}
    assert status == [0, 0, 0], out
    assert all(rule.left <= 0 for rule in router.rules), [rule for rule in router.rules if rule.left > 0]
    assert "Traceback" not in "".join(out.values())
    return out


@pytest.mark.slow
def test_a_router_that_resets_rpc_costs_no_step_and_all_screens_say_so(tmp_path, free_port):
    out = run(tmp_path, free_port, OPTIONS, [("step", 3, (RPC,), True), ("evaluate", 1, (RPC,), False)])
    local.run(compose(*OPTIONS), tmp_path / "whole")
    assert_same(tmp_path / "run", tmp_path / "whole")
    for client in (out["client0"], out["client1"]):
        assert "the connection to the server at 127.0.0.1" in client and "broke: trying again until" in client
        assert "the connection to the server is back" in client
    assert "client 1 connects anew from 127.0.0.1" in out["server"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        [],
        ["topology.average=step"],
        ["topology=sequential"],
        ["exchange=u_shaped"],
        ["pipeline_depth=2"],
    ],
    ids=["parallel", "step", "sequential", "u_shaped", "ahead"],
)
def test_so_do_resets_of_any_connection_at_any_moment(options, tmp_path, free_port):
    run(tmp_path, free_port, [*OPTIONS, *options], AT_ALL_MOMENTS)
    local.run(compose(*OPTIONS, *options), tmp_path / "whole")
    assert_same(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_an_open_run_goes_on_with_whom_it_has_and_the_others_come_back(tmp_path, free_port):
    end = ("goodbye", 1), ("goodbye", 3), ("weights", 5)  # who is gone then may have missed it
    breaks = [rule for rule in AT_ALL_MOMENTS if rule[:2] not in end]
    out = run(tmp_path, free_port, [*OPTIONS, "membership.open=true"], breaks)
    assert all("the run has finished, with a test accuracy" in out[name] for name in ("client0", "client1"))


@pytest.mark.slow
def test_a_connection_that_is_lost_without_a_word_costs_time_and_nothing_else(tmp_path, free_port):
    options = [*OPTIONS, "rpc.retry_s=1"]
    run(tmp_path, free_port, options, [("step", 5, (MUTE, RPC), True), ("weights", 2, (MUTE, *BOTH), False)])
    local.run(compose(*options), tmp_path / "whole")
    assert_same(tmp_path / "run", tmp_path / "whole")
