"""Real runs over loopback, started as a user would."""

import errno
import io
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from rich.console import Console
from runs import (
    LAUNCH,
    ROOT,
    TINY,
    children,
    job_folders,
    left_over,
    living,
    metrics,
    run,
    session,
    slow,
    started,
    summary,
    torchrun,
    wait_for,
)
from simulation import compose

from splitlearn import commandline, forking, jobs, launch, local, sweeps, worker
from splitlearn.errors import UserError
from splitlearn.folder import held
from splitlearn.hydras import register_resolver
from splitlearn.privacy.observing import observed
from splitlearn.started import Start

FILES = {"client_segment.pt", "server_segment.pt", "config.yaml", "metrics.jsonl", "summary.json"}


ALIKE = [*TINY, "compressor@downlink=rt", "server.num_threads=1", "client.num_threads=1"]


@pytest.fixture(scope="module")
def under_torchrun(tmp_path_factory):
    """Output and folder of a run of three ranks under torchrun."""
    cwd = tmp_path_factory.mktemp("torchrun")
    status, out = run([*torchrun(3), *ALIKE, "log.tensorboard=true"], cwd)
    assert status == 0, out
    return out, cwd


@pytest.fixture(scope="module")
def local_sweep(tmp_path_factory):
    """The jobs' folders of a sweep over local ranks, of which the first job is the run under torchrun."""
    cwd = tmp_path_factory.mktemp("sweep")
    link = ["link.up_mbits=2", "link.down_mbits=4"]
    status, out = run([*LAUNCH, "-m", "compressor=ms,none", "num_clients=2", *ALIKE, *link], cwd)
    assert status == 0, out
    return job_folders(cwd)


def test_three_ranks_under_torchrun_make_one_folder(under_torchrun):
    out, cwd = under_torchrun
    (folder,) = job_folders(cwd)
    names = {path.name for path in folder.iterdir()}
    assert names >= FILES and any(name.startswith("events.out.tfevents") for name in names)
    assert {path.name for path in cwd.iterdir()} == {"outputs", "out.txt"}
    assert out.count("test accuracy") == 1 and "saving, measured" in out
    # 64 samples over 2 clients in batches of 16: 2 steps, 2 payloads each, of a 64×8×8 map.
    steps = metrics(folder, "step")
    assert [step["step"] for step in steps] == [1, 2]
    numel = 16 * 64 * 8 * 8
    top_values, mask = 4 * (numel // 100), numel * 2 // 8
    header = 56
    assert steps[0]["uplink_bytes"] == 2 * (header + top_values + mask)
    assert summary(folder)["uplink"]["saving"] == pytest.approx(4 * numel / (header + top_values + mask))


def test_multirun_of_local_ranks_makes_a_folder_a_job(local_sweep):
    assert [summary(folder)["uplink"]["compressor"].split()[0] for folder in local_sweep] == ["ms", "none"]
    assert [folder.name for folder in local_sweep] == ["0", "1"]


def test_time_over_a_link_is_estimated_from_the_bytes(local_sweep):
    for folder in local_sweep:
        found, steps = summary(folder), metrics(folder, "step")
        other = {name: number / 2 for name, number in found["other_bytes"].items()}  # both clients' are alike
        up = sum(step["uplink_bytes"] / 2 for step in steps)
        up += other["labels_up"] + other["weights_up"] + other["evaluation_up"]
        down = sum(step["downlink_bytes"] / 2 for step in steps) + other["weights_down"]
        expected = found["seconds"] + 8 * up / 2e6 + 8 * down / 4e6
        assert found["seconds_over_link"] == pytest.approx(expected)


@pytest.mark.slow
def test_multirun_under_torchrun_steps_through_the_same_jobs(tmp_path):
    status, out = run([*torchrun(2), "-m", "cut=shallow,deep", *TINY], tmp_path)
    assert status == 0, out
    assert [summary(folder)["cut"] for folder in job_folders(tmp_path)] == ["block1", "block3"]


def test_launchers_give_the_same_run_bit_for_bit(under_torchrun, local_sweep):
    for side in ("client", "server"):
        first, second = (
            torch.load(folder / f"{side}_segment.pt") for folder in (*job_folders(under_torchrun[1]), local_sweep[0])
        )
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def one_each(tmp_path, free_port):
    """Options for one server and one client, and a folder to start each in."""
    folders = tmp_path / "server", tmp_path / "client"
    for folder in folders:
        folder.mkdir()
    return ["num_clients=1", f"rpc.port={free_port}", *TINY], *folders


@pytest.mark.slow
def test_a_client_elsewhere_keeps_its_inputs_where_it_says(one_each):
    options, server_cwd, client_cwd = one_each
    options += ["observe.batches=2", "observe.every=1"]
    with started([*LAUNCH, "role=server", *options], server_cwd) as server:
        status, out = run([*LAUNCH, "role=client", *options, "observe.inputs=./mine"], client_cwd)
        assert status == 0, out
        assert server.wait(30) == 0
    assert "and the inputs of these" in out
    (folder,) = job_folders(server_cwd)
    kept = {path.stem for path in (folder / "observed" / "client-0").iterdir()}
    inputs = {path.stem for path in (client_cwd / "mine" / "client-0").iterdir()}
    assert len(kept) == 2 and inputs == {f"{name}-inputs" for name in kept}
    shutil.copytree(client_cwd / "mine", folder / "observed", dirs_exist_ok=True)
    assert all("inputs" in one for one in observed(folder))


def test_role_by_role_start(one_each):
    options, server_cwd, client_cwd = one_each
    with started([*LAUNCH, "role=server", *options], server_cwd) as server:
        status, out = run([*LAUNCH, "role=client", *options], client_cwd)
        assert status == 0, out
        assert server.wait(30) == 0
    assert len(job_folders(server_cwd)) == 1
    assert {path.name for path in client_cwd.iterdir()} == {"out.txt"}
    server_out, port = (server_cwd / "out.txt").read_text(), options[1].split("=")[1]
    assert (
        f"listening at 127.0.0.1:{port}: start each client with role=client num_clients=1 client.index=0" in server_out
    )
    assert "waiting for client 0 of 1" in server_out
    shown = [
        "splitlearn client 0 of 1",
        f"waiting for the server at 127.0.0.1:{port} (rpc.connect_timeout_s=60)",
        f"found the server at 127.0.0.1:{port}",
        "joined as client 0 of 1, 64 training samples, cut medium",
        "epoch 1/1 loss",
        "the run has finished, with a test accuracy of",
    ]
    assert [line.startswith(start) for line, start in zip(out.splitlines(), shown, strict=True)] == [True] * 6, out
    # The only client's figures are the server's, all but the accuracies, which it does not know.
    (at_server,) = [line.split() for line in server_out.splitlines() if line.startswith("epoch")]
    at_client = out.splitlines()[4].split()
    assert at_client[:4] == at_server[:4] and at_client[-8:-2] == at_server[-8:-2]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["compressor.ratio=1.5"], ["compressor.ratio=1.5", "0 ≤ ratio < 1"]),
        (["cut=block9"], ["cut=block9", "block1, block2.0"]),
        (["data=image_folder", "data.root=/does/not/exist"], ["data.root=/does/not/exist", "set data.root"]),
        (["num_clients=40000"], ["num_clients=40000", "1 to 32767"]),
        (["optimizer.lr=abc"], ["optimizer.lr=abc must be a number"]),
        (["schedule.T_max=0"], ["schedule.T_max=0 must be a whole number, at least 1"]),
        (
            ["optimizer._target_=torch.optim.Sgd"],
            ["torch.optim.Sgd cannot be imported: ", "has no Sgd: did you mean SGD?"],
        ),
        (["+optimizer.foo=1"], ["optimizer.foo=1 does not fit torch.optim.SGD"]),
        (["rpc.host=10.0.0.9", "rpc.port=1234"], ["rpc.port=1234 is for a rank that is started alone: add role="]),
        (["client.index=7"], ["client.index=7 is for a rank that is started alone"]),
        (["role=client", "num_clients=2", "client.index=abc"], ["client.index=abc must be a whole number, at least 0"]),
        (["role=client", "num_clients=2", "client.index=null"], ["client.index=null must be a whole number"]),
        (["role=client", "num_clients=2", "client.index=-1"], ["client.index=-1 must be a whole number"]),
        (["role=client", "num_clients=abc"], ["num_clients=abc must be a whole number, at least 1"]),
        (["role=client", "num_clients=2", "client=null"], ["client.index=null must be a whole number"]),
        (["role=server", "num_clients=0"], ["num_clients=0 must be a whole number, at least 1"]),
        (["role=server", "num_clients=1", "rpc=null"], ["rpc=null"]),
        (["hydra.run.dir=/proc/none"], ["/proc/none cannot be written to", "hydra.run.dir=<folder>"]),
    ],
    ids=lambda value: value[0] if "=" in value[0] else "",
)
def test_a_mistake_is_one_clear_sentence(run_here, overrides, words):
    assert_one_sentence(*run_here(ROOT / "launch.py", *TINY, *overrides), words)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["role=client", "rpc.port=9"],
            ["no server at 127.0.0.1:9", "splitlearn client 0 of 1", "waiting for the server"],
        ),
        (
            ["role=server", "rpc.port=0"],
            [
                "client 0 did not come",
                "waiting for client 0 of 1 (rpc.connect_timeout_s=1)",
                "let them reach 127.0.0.1:",
            ],
        ),
    ],
    ids=["client", "server"],
)
def test_a_peer_that_does_not_come_is_one_clear_sentence(run_here, overrides, words):
    options = [*TINY, "num_clients=1", "rpc.connect_timeout_s=1", *overrides]
    assert_one_sentence(*run_here(ROOT / "launch.py", *options), words)


def test_a_container_that_sets_ranks_of_its_own_is_not_torchruns(run_here, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "1")
    options = ["role=client", "num_clients=2", "client.index=5"]
    assert_one_sentence(*run_here(ROOT / "launch.py", *options), ["client.index=5 is out of range"])
    for words, torchruns, expected in (
        ([], False, False),
        ([], True, True),
        (["role=server"], True, False),
        (["+role='client'"], False, True),
        (["role=client", "role=null"], False, False),
        (["role=client", "role="], True, True),
    ):
        monkeypatch.setattr("sys.argv", ["launch.py", *words])
        if torchruns:
            monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
        else:
            monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
        assert commandline.is_client() is expected


def assert_one_sentence(status: int, out: str, words: list[str]) -> None:
    assert status == 1
    assert all(word in out for word in words), out
    assert "Traceback" not in out and "HYDRA_FULL_ERROR" not in out and "Error executing job" not in out
    assert "stopped: " not in out  # it is no matter of one client


@pytest.mark.slow
def test_a_wrong_number_of_ranks_is_told_once(tmp_path):
    status, out = run([*torchrun(2), *TINY, "num_clients=4"], tmp_path)
    assert status != 0
    sentence = "num_clients=4 but torchrun started 2 ranks"
    assert sum(line.startswith(sentence) for line in out.splitlines()) == 1
    assert "new message format" not in out  # a warning of torchrun's about the sentence
    assert f"traceback : {sentence}" in out  # once more at the end of torchrun's own report


@pytest.mark.parametrize(
    ("rank", "local", "node", "shown"),
    [
        (1, 1, 1, "splitlearn client 0 of 3"),
        (3, 2, 1, "client 2: splitlearn client 2 of 3"),
        (1, 2, 0, ""),
        (1, 4, 0, ""),
    ],
    ids=["alone", "two_on_a_node", "beside_the_server", "all_on_one"],
)
def test_clients_of_torchrun_have_a_screen_where_the_server_has_another(rank, local, node, shown, monkeypatch, capfd):
    environment = {"RANK": rank, "WORLD_SIZE": 4, "LOCAL_WORLD_SIZE": local, "GROUP_RANK": node, "MASTER_PORT": 29500}
    for name, value in {**environment, "MASTER_ADDR": "10.0.0.1", "TORCHELASTIC_RUN_ID": "1"}.items():
        monkeypatch.setenv(name, str(value))
    place = worker.place_from(compose())
    assert worker._screen_of(place) and capfd.readouterr().out.strip() == shown
    with pytest.raises(UserError, match="num_clients=abc must be a whole number"):
        worker.place_from(compose("num_clients=abc"))
    assert place.desk_port == 0 and worker.place_from(compose("rpc.port=29501")).desk_port == 29501


@pytest.mark.slow
def test_configurations_that_differ_are_found_when_they_meet(one_each):
    options, server_cwd, client_cwd = one_each
    with started([*LAUNCH, "role=server", *options], server_cwd) as server:
        status, out = run([*LAUNCH, "role=client", *options, "compressor.bits=3"], client_cwd)
        assert status == 1 and server.wait(30) == 1
    assert "compressor.bits (server 2, client 3)" in out
    assert "compressor.bits (server 2, client 3)" in (server_cwd / "out.txt").read_text()


@pytest.mark.parametrize(
    "command",
    [
        pytest.param([*LAUNCH, "num_clients=1"], id="local"),
        pytest.param(torchrun(2), id="torchrun", marks=pytest.mark.slow),
    ],
)
def test_ctrl_c_leaves_no_process_behind(tmp_path, command):
    with started([*command, *TINY, "epochs=10000"], tmp_path) as process:
        wait_for(tmp_path / "out.txt", "epoch ")
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) != 0
        assert not left_over(process.pid)
    out = (tmp_path / "out.txt").read_text()
    if "torch.distributed.run" not in command:
        assert process.returncode == 130
        assert "with a checkpoint: go on with resume=" in out and "Traceback" not in out


@pytest.mark.parametrize("number", [signal.SIGTERM, slow(signal.SIGHUP)])
def test_ending_each_process_of_a_group_is_one_request(number, tmp_path):
    options = ["num_clients=1", *TINY, "epochs=10000", "checkpoint.every_epochs=null"]
    with started([*LAUNCH, *options], tmp_path) as process:
        wait_for(tmp_path / "out.txt", "epoch ")
        process.send_signal(number)
        os.killpg(process.pid, number)  # as `timeout` does after that, and a terminal that closes
        assert process.wait(60) == 128 + number and not left_over(process.pid)
    out = (tmp_path / "out.txt").read_text()
    assert "with a checkpoint: go on with resume=" in out and "Traceback" not in out, out


def test_a_second_ctrl_c_ends_at_once(tmp_path):
    with started([*LAUNCH, "num_clients=1", *TINY, "epochs=10000"], tmp_path, anew=True) as process:
        wait_for(tmp_path / "out.txt", "epoch ")
        forker = next(pid for pid in children(process.pid) if children(pid))
        ranks = children(forker)
        command, its = (Path(f"/proc/{pid}/cmdline").read_bytes() for pid in (process.pid, forker))
        assert command == its  # a copy, for which nothing was imported anew
        for rank in ranks:
            os.kill(rank, signal.SIGSTOP)  # so that they do nothing that they are asked for
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + 5
        while living().keys() & ranks:
            assert time.monotonic() < deadline
        assert process.wait(60) == 130 and not left_over(process.pid)
    out = (tmp_path / "out.txt").read_text()
    assert out.count("interrupted") == 1 and "Traceback" not in out, out


# Moments of the start: Python itself, imports, Hydra, the process that is forked, ranks.
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "command, seconds",
    [
        pytest.param([*LAUNCH, "num_clients=2"], [3.0], id="local"),
        pytest.param(
            [*LAUNCH, "num_clients=2"],
            [0.2, 0.3, 0.5, 1.0, 1.5, 2.0, 2.5, 3.5, 4.0, 4.5, 5.0, 5.5, 6.0, 6.5, 7.5, 8.0],
            id="local, more often",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            [*LAUNCH, "role=client", "num_clients=1", "rpc.port=9"], [4, 6, 8], id="client", marks=pytest.mark.slow
        ),
        pytest.param(
            [*LAUNCH, "role=server", "num_clients=1", "rpc.port=0"], [4, 6, 8], id="server", marks=pytest.mark.slow
        ),
    ],
)
def test_a_start_is_interrupted_with_one_line(tmp_path, command, seconds, number):
    for moment in seconds:
        with started([*command, *TINY, "epochs=10000"], tmp_path, anew=True) as process:
            time.sleep(moment)
            os.killpg(process.pid, number)
            assert process.wait(30) == 128 + number, (moment, (tmp_path / "out.txt").read_text())
            deadline = time.monotonic() + 10
            while left_over(process.pid) and time.monotonic() < deadline:  # one that forks ends when its parent has
                time.sleep(0.1)
            assert not left_over(process.pid), moment
        out = (tmp_path / "out.txt").read_text()
        assert "Traceback" not in out and "Error" not in out, (moment, out)
        assert "interrupted" in out or "go on with resume=" in out, (moment, out)


@pytest.mark.slow
def test_torchruns_ranks_are_interrupted_in_silence(tmp_path):
    for moment in (6, 8, 10):
        with started([*torchrun(2), *TINY, "epochs=10000"], tmp_path) as process:
            time.sleep(moment)
            os.killpg(process.pid, signal.SIGINT)
            assert process.wait(60) != 0 and not left_over(process.pid)
        out = (tmp_path / "out.txt").read_text()
        assert "splitlearn/" not in out and out.count("Traceback") <= 1, out  # torchrun's own


@pytest.mark.parametrize(
    "overrides, sentence",
    [
        (["arch=resnt18"], "arch=resnt18 is unknown: did you mean resnet18"),
        (["topology=ring"], "topology=ring is unknown: choose one of parallel, sequential"),
        (["compresor.bits=3"], "compresor.bits is unknown: did you mean compressor.bits"),
        (["num_cleints=3"], "num_cleints is unknown: did you mean num_clients"),
        (["optimizer.momentm=0"], "optimizer.momentm is unknown: did you mean optimizer.momentum?"),
        (["optimizer.foo=1"], "optimizer.foo is unknown: choose one of lr, momentum, weight_decay, nesterov"),
        (["exchange.foo=1"], "exchange.foo is unknown: the exchange that is chosen has no options; one that exchange"),
        (["exchange.delta=fp32"], "exchange.delta is unknown: did you mean delta?"),
        (["codecs=klt", "compressor@downlink=none"], "codecs=klt sets options of its own compressor@downlink, and"),
        (["codecs=qu", "compressor=none"], "codecs=qu sets options of its own compressor, and does not go with"),
        (["cut=shallow,deep"], "cut=shallow,deep is several values: add -m for a sweep"),
        (["compressor.bits=abc"], "compressor.bits=abc must be a whole number"),
        (["data.mean=["], "data.mean=[ cannot be read"),
        (["codecs=null"], "codecs=null names no choice: leave codecs out"),
        (["compressor@downlink=3"], "compressor@downlink=3 names no choice: leave compressor@downlink out"),
        (["weights=uq"], "weights=uq must be a group of options, as in conf/: compressor@weights=uq chooses a codec"),
        (["deep"], "deep is no option: options are key=value"),
        (["data.root=${nowhere}"], "data.root"),
        (["hydra/launcher=jobl"], "hydra/launcher=jobl is unknown"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_hydras_errors_are_one_sentence(run_here, overrides, sentence):
    status, out = run_here(ROOT / "launch.py", *TINY, *overrides)
    assert_one_sentence(status, out, [sentence])
    assert len(out.strip().splitlines()) == 1, out


def test_a_start_that_is_refused_leaves_nothing(run_here, tmp_path):
    status, out = run_here(ROOT / "launch.py", *TINY, "compressor.bits=99", "hydra.run.dir=mine")
    assert_one_sentence(status, out, ["compressor.bits=99"])
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_a_sweep_ends_with_a_table_in_one_folder(run_here, tmp_path, monkeypatch):
    """Of jobs whose moments differ, one of which cannot run; the sweep of the same second has another folder."""
    moments = itertools.count()
    monkeypatch.setattr("splitlearn.local.run", lambda cfg, folder, **_: finished(folder, 0.5 + cfg.seed / 10))
    monkeypatch.setattr("splitlearn.launch.started_at", lambda form: f"at-{next(moments)}")
    register_resolver("started_at", lambda form: f"at-{next(moments)}")
    try:
        status, out = run_here(ROOT / "launch.py", "-m", "seed=0,1", "compressor.bits=2,99")
    finally:
        register_resolver("started_at", launch.started_at)
    (folder,) = (path.parent for path in tmp_path.rglob("multirun.yaml"))
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["0", "1", "2", "3"]
    rows = [line.split() for line in out.splitlines() if re.match(r" [0-3] ", line)]
    assert [row[:4] for row in rows] == [
        ["0", "0", "2", "50.00%"],
        ["1", "0", "99", "failed"],
        ["2", "1", "2", "60.00%"],
        ["3", "1", "99", "failed"],
    ]
    assert rows[0][4:] == ["50.00%", "1.10", "MB", "10.00", "×", "1.82", "×", "6.0", "s"]
    assert "job 1 failed: compressor.bits=99 is out of range" in out
    assert status == 1 and f"scripts/report.py {folder.relative_to(tmp_path)}" in out


@pytest.mark.parametrize("word", ["data.root=/a,/b", "client.num_threads=1,2"])
def test_jobs_that_would_have_one_folder_are_refused(word, run_here):
    status, out = run_here(ROOT / "launch.py", "sweep=grid", "data=image_folder,digits", "seed=0,1", word)
    assert_one_sentence(status, out, [f"{word} would give several jobs one folder", "hydra.sweep.dir="])


@pytest.mark.parametrize("own", ["${client.num_threads}", "${hydra.job.num}", "${hydra:job.id}"])
def test_jobs_have_folders_by_what_the_sweep_says(own, run_here, tmp_path, monkeypatch):
    monkeypatch.setattr("splitlearn.local.run", lambda cfg, folder, **_: finished(folder, 0.5))
    subdir = f"hydra.sweep.subdir=${{hydra.job.override_dirname}}/{own}"
    status, out = run_here(ROOT / "launch.py", "sweep=grid", subdir, "seed=0,1", "client.num_threads=1,2")
    assert status == 0 and len([*tmp_path.rglob("summary.json")]) == 4, out


def test_a_job_with_more_words_than_a_folders_name_holds_has_one_too(run_here, tmp_path, monkeypatch):
    monkeypatch.setattr("splitlearn.local.run", lambda cfg, folder, **_: finished(folder, 0.5))
    weights = f"task.class_weights=[{','.join(['1.0000001'] * 30)}]"
    for _ in range(2):
        status, out = run_here(ROOT / "launch.py", "sweep=grid", "seed=0,1", weights)
        assert status == 0, out
    folders = [path.parent.name for path in tmp_path.rglob("summary.json")]
    assert len(folders) == 2 and all(len(name) == 255 for name in folders)


def finished(folder: Path, result: float, metric: str = "top1") -> float:
    """What a run leaves for the table."""
    ways = {"uplink": 100_000, "downlink": 1_000_000}
    about = {key: {"bytes": sent, "uncompressed_bytes": 10**6, "saving": 10**6 / sent} for key, sent in ways.items()}
    about |= {f"test_{metric}": result, f"best_test_{metric}": result, "seconds": 6.0}
    about["all_bytes"] = {"up": 100_000, "down": 1_000_000}
    (folder / "summary.json").write_text(json.dumps(about))
    return result


def test_a_table_of_jobs_has_the_first_metric_of_each(run_here, monkeypatch):
    def run(cfg, folder, **_):
        if cfg.task._target_.endswith("CausalLM"):
            return finished(folder, 12.5, "perplexity")
        return finished(folder, 0.5)

    monkeypatch.setattr("splitlearn.local.run", run)
    status, out = run_here(ROOT / "launch.py", "-m", "task=image_classification,causal_lm", "seed=0,-1")
    rows = [line.split()[:6] for line in out.splitlines() if re.match(r" ([0-3]|job) ", line)]
    assert rows[0] == ["job", "task", "seed", "accuracy", "perplexity", "best"] and status == 1
    assert [row[3:] for row in rows[1:]] == [
        ["50.00%", "–", "50.00%"],
        ["failed", "–", "–"],
        ["–", "12.5000", "12.5000"],
        ["failed", "–", "–"],
    ]


def test_a_table_of_jobs_shows_lists_in_their_brackets(tmp_path):
    OmegaConf.save(compose(), tmp_path / "config.yaml")
    (tmp_path / ".hydra").symlink_to(tmp_path)
    found = [jobs.Job(n, tmp_path, {"defence": given}, None, None) for n, given in enumerate(("[]", "[noise]"))]
    console = Console(width=100, file=io.StringIO())
    console.print(jobs.table(found))
    assert "[noise]" in console.file.getvalue()


def test_jobs_that_went_on_alone_stay_in_the_table(run_here, tmp_path, monkeypatch):
    def run(cfg, folder, origin):
        (folder / ".hydra" / "hydra.yaml").write_text(origin[".hydra/hydra.yaml"])
        return finished(folder, 0.5 + cfg.seed / 10)

    monkeypatch.setattr("splitlearn.local.run", run)
    sweep = ["-m", "seed=0,1,2", "hydra.sweep.dir=sweep"]
    assert run_here(ROOT / "launch.py", *sweep)[0] == 0
    assert run_here(ROOT / "launch.py", "resume=sweep/1")[0] == 0
    assert Start.of(tmp_path / "sweep" / "1").job == 1
    about = tmp_path / "sweep" / "2" / ".hydra" / "hydra.yaml"
    about.write_text(about.read_text().replace("num: 2", "num: ???"))  # as where one went on with hydra.run.dir=sweep/2
    monkeypatch.setattr("splitlearn.local.run", lambda cfg, folder, **_: 0.5)
    status, out = run_here(ROOT / "launch.py", *sweep)
    assert [line.split()[:3] for line in out.splitlines() if re.match(r" [0-2] ", line)] == [
        ["0", "0", "50.00%"],
        ["1", "1", "60.00%"],
        ["2", "2", "70.00%"],
    ]
    assert status == 0


def test_a_sweep_that_another_one_is_at_leaves_its_jobs_alone(run_here, tmp_path, monkeypatch):
    def run(cfg, folder, **_):
        with held(folder):
            return finished(folder, 0.5)

    monkeypatch.setattr("splitlearn.local.run", run)
    sweep = ["-m", "seed=0,1", "hydra.sweep.dir=sweep"]
    with held(tmp_path / "sweep" / "0"):
        status, out = run_here(ROOT / "launch.py", *sweep)
    assert status == 1 and "the sweep goes on: " in out and "is being written to by process" in out
    assert not list(tmp_path.rglob(jobs.FAILED)) and (tmp_path / "sweep" / "1" / "summary.json").exists()
    job = tmp_path / "sweep" / "1"
    for seconds, failure in ((-9, None), (9, "why")):  # before it has finished, and after
        (job / jobs.FAILED).write_text("why")
        moment = (job / "summary.json").stat().st_mtime + seconds
        os.utime(job / jobs.FAILED, (moment, moment))
        assert jobs.Job.read(job).failure == failure


def test_a_disk_that_fills_during_a_sweep_ends_it_with_its_table(run_here, tmp_path, monkeypatch):
    def run(cfg, folder, **_):
        if cfg.seed == 1:
            raise UserError("the disk is full")
        return finished(folder, 0.5)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    write = Path.write_text
    monkeypatch.setattr("splitlearn.local.run", run)
    monkeypatch.setattr(
        Path, "write_text", lambda path, *text, **how: (full if path.name == jobs.FAILED else write)(path, *text, **how)
    )
    status, out = run_here(ROOT / "launch.py", "-m", "seed=0,1,2", "hydra.sweep.dir=sweep")
    assert status == 1 and "the sweep goes on: the disk is full" in out and "Traceback" not in out
    assert [line.split()[2] for line in out.splitlines() if re.match(r" [0-2] ", line)] == ["50.00%", "not", "50.00%"]
    monkeypatch.setattr(OmegaConf, "save", full)  # as Hydra does with multirun.yaml
    status, out = run_here(ROOT / "launch.py", "-m", "seed=0,1", "hydra.sweep.dir=other")
    assert_one_sentence(status, out, ["other cannot be written to (No space left", "hydra.sweep.dir=other"])


@pytest.mark.slow
def test_help_whose_reader_has_enough_ends_without_a_traceback(tmp_path):
    status, out = run(["bash", "-c", f"{shlex.join([*LAUNCH, '--help'])} | head -1"], tmp_path)
    assert status == 0 and out.strip() == "splitlearn: split learning over torch RPC with a compressed uplink"


def test_sweeps_of_the_same_second_have_a_folder_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = OmegaConf.create({"hydra": {"sweep": {"dir": "multirun/${started_at:same}"}}})
    register_resolver("started_at", lambda form: form)
    try:
        folders = [sweeps.one_folder(cfg).name for _ in range(3)]
    finally:
        register_resolver("started_at", launch.started_at)
    assert folders == ["same", "same-2", "same-3"]


RESULTS = {0: 0.1, 1: 0.9, 2: float("nan")}  # by seed


@pytest.mark.slow
def test_a_search_looks_for_the_best_past_what_fails(run_here, tmp_path, monkeypatch):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    monkeypatch.setattr("splitlearn.local.run", lambda cfg, folder, **_: finished(folder, RESULTS[cfg.seed]))
    search = ["-m", "hydra/sweeper=optuna", "hydra/sweeper/sampler=random", "hydra.sweeper.sampler.seed=6"]
    status, out = run_here(ROOT / "launch.py", *search, "hydra.sweeper.n_trials=6", "seed=choice(0,1,-1,2)")
    (results,) = tmp_path.rglob("optimization_results.yaml")
    assert OmegaConf.load(results) == {"name": "optuna", "best_params": {"seed": 1}, "best_value": 0.9}
    assert status == 1 and "of the sweep failed" in out and "failed: seed=-1 must be" in out and " nan%" in out
    status, out = run_here(ROOT / "launch.py", *search, "hydra.sweeper.direction=minimize")
    assert_one_sentence(status, out, ["hydra.sweeper.direction=minimize looks for the worst accuracy"])
    status, out = run_here(ROOT / "launch.py", *search, "hydra.sweeper.n_trials=2", "seed=choice(-1,-2)")
    assert status == 1 and "2 jobs of the sweep failed" in out and "Traceback" not in out


@pytest.mark.slow
def test_any_terminal_will_do(tmp_path):
    environment = {"PYTHONIOENCODING": "ascii", "HYDRA_FULL_ERROR": "1", "COLUMNS": "30"}
    environment |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}  # files are read as ASCII by default
    status, out = run([*LAUNCH, "num_clients=1", *TINY], tmp_path, anew=True, **environment)
    assert status == 0 and "test accuracy" in out.replace("\n", " "), out


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["{} | head -n 1", "{} >&- 2>&-", "{} >/dev/full 2>&1"])
def test_a_run_goes_on_where_nobody_reads_its_output(tmp_path, shell):
    command = shlex.join([*LAUNCH, "num_clients=1", *TINY, "hydra.run.dir=run"])
    status, out = run(["bash", "-o", "pipefail", "-c", shell.format(command)], tmp_path)
    assert status == 0 and "Error" not in out and (tmp_path / "run" / "summary.json").exists(), out


def test_a_killed_client_ends_the_run_with_its_name(tmp_path):
    with started([*LAUNCH, "num_clients=2", *TINY, "epochs=10000"], tmp_path) as process:
        wait_for(tmp_path / "out.txt", "epoch ")
        os.kill(max(session(process.pid)), signal.SIGKILL)  # the ranks are started in order: the last is client 1
        assert process.wait(60) == 1
        assert not left_over(process.pid)
    assert "client1 ended with SIGKILL" in (tmp_path / "out.txt").read_text()


@pytest.mark.slow
def test_ranks_end_with_a_launcher_that_is_killed(tmp_path):
    with started([*LAUNCH, "num_clients=1", *TINY, "epochs=10000"], tmp_path) as process:
        wait_for(tmp_path / "out.txt", "epoch ")
        process.kill()
        assert not left_over(process.pid)


@pytest.mark.parametrize("nonfinite, num_steps", [("stop", 1), ("skip", 8)])
def test_training_that_diverges_stops_or_goes_on_without_those_batches(run_here, tmp_path, nonfinite, num_steps):
    options = [*TINY, "epochs=2", "optimizer.lr=1e20", "num_clients=1", "evaluate.every=2", f"nonfinite={nonfinite}"]
    status, out = run_here(ROOT / "launch.py", *options, "hydra.run.dir=run")
    assert_one_sentence(status, out, ["not finite", "training diverged; lower optimizer.lr"])
    steps = metrics(tmp_path / "run", "step")
    assert len(steps) == num_steps
    assert all(line["clients"] == [] for line in steps[2:])


@pytest.mark.parametrize("role", [[], ["role=client", "num_clients=2"]])
def test_cuts_are_listed(role, run_here, tmp_path):
    status, out = run_here(ROOT / "launch.py", "arch=resnet18", "cut=?", *role)
    assert status == 0
    assert "layer2" in out and "128×16×16" in out and "131,072" in out
    assert "11,173,962 weights" in out and "675,392" in out and "51.7%" in out  # 574 of 1,111 MFLOPs
    assert not job_folders(tmp_path)


def test_help_names_every_group(run_here):
    status, out = run_here(ROOT / "launch.py", "--help")
    assert status == 0
    assert all(f"{path.name}:" in out for path in (ROOT / "conf").iterdir() if path.is_dir() and path.name != "hydra")
    assert "compressor: c3sl, fedlite, int8, klt, linked, low_rank, mf, ms, ms_best, none, nq, qu, rt, sp" in " ".join(
        out.split()
    )


def test_a_command_that_starts_no_ranks_here_forks_none_however_its_keys_are_written():
    assert forking.forks(["num_clients=2"]) and forking.forks(["-m", "+seed=1,2"])
    for word in ("role=server", "+role=client", "++role=client", "cut=?", "+hydra/launcher=joblib", "--cfg"):
        assert not forking.forks([word]), word


def test_only_a_rank_that_has_not_ended_is_signalled():
    class Process:
        def __init__(self, alive: bool):
            self.is_alive, self.signals = lambda: alive, []

    for alive in (True, False):
        process = Process(alive)
        local._end(process, lambda: process.signals.append("SIGTERM"))  # noqa: B023
        assert bool(process.signals) == alive
