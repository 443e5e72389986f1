"""A run's folder: no two runs get the same one, one process writes into it, a start that is refused changes nothing."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from runs import ROOT, TINY, job_folders, metrics, run, started, summary, torchrun, wait_for
from simulation import compose

from splitlearn import checkpoints, folder, local
from splitlearn.checkpoints import Checkpoints
from splitlearn.errors import UserError
from splitlearn.folder import fitting, held, new_folder, own_folder, unusable
from splitlearn.measure.display import Display
from splitlearn.measure.recorder import Recorder

LAUNCHED = ["num_clients=1", *TINY, "epochs=2", "checkpoint.keep=9", "schedule=constant"]
HOLD = """
import sys
from pathlib import Path
from splitlearn.folder import held
with held(Path(sys.argv[1])):
    print(flush=True)
    input()
"""


def content(folder: Path) -> dict[Path, tuple[bytes, int]]:
    """Every file below a folder, and when it was written."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


# Its name


def test_only_a_name_that_is_too_long_is_cut():
    assert fitting("convnet-digits/cut-deep_seed-0") == "convnet-digits/cut-deep_seed-0"
    assert fitting("a/" + 255 * "b") == "a/" + 255 * "b"
    names = {fitting(f"a/{254 * 'b'}ä{number}")[2:] for number in range(3)}
    assert len(names) == 3 and all(len(name.encode()) == 255 for name in names)


# The lock


def test_one_process_at_a_time_holds_a_folder(tmp_path):
    with held(tmp_path / "run"):
        words = rf"run is being written to by process {os.getpid()} on .*hydra.run.dir"
        with pytest.raises(UserError, match=words), held(tmp_path / "run"):
            pass
        assert (tmp_path / "run" / ".lock").exists()
    with held(tmp_path / "run"):
        pass
    assert not list((tmp_path / "run").iterdir())


def test_a_killed_process_holds_nothing(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    ) as process:
        process.stdout.readline()
        with pytest.raises(UserError, match=rf"process {process.pid} on"), held(tmp_path):
            pass
        process.kill()
    with held(tmp_path):
        assert f"process {os.getpid()} " in (tmp_path / ".lock").read_text()


def test_a_lock_that_its_holder_has_just_removed_is_not_taken_for_one(tmp_path, monkeypatch):
    flock, calls = __import__("fcntl").flock, []

    def slow(file, how):
        flock(file, how)
        if not calls.append(how) and len(calls) == 1:
            (tmp_path / ".lock").unlink()

    monkeypatch.setattr("fcntl.flock", slow)
    with held(tmp_path):
        assert len(calls) == 2 and (tmp_path / ".lock").read_text()


def test_a_file_system_without_locks_is_told_of(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    notes = []
    monkeypatch.setattr("fcntl.flock", unsupported)
    with held(tmp_path, notes.append):
        assert "cannot be locked (Function not implemented)" in notes[0]


# Names


def test_no_two_runs_get_the_same_folder(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: own_folder(tmp_path / "12-00-00", None), range(8)))
    names = {"12-00-00", *(f"12-00-00-{number}" for number in range(2, 9))}
    assert {path.name for path in folders} == names


def test_ranks_that_torchrun_starts_again_find_their_folder(tmp_path):
    one, other = (own_folder(tmp_path / "12-00-00", launcher) for launcher in ("one", "other"))
    assert one.name == "12-00-00" and other.name == "12-00-00-2"
    assert own_folder(tmp_path / "12-00-01", "one") == one  # clocks are not that exact
    assert own_folder(tmp_path / "12-00-00", "other") == other


def test_two_starts_within_a_second_are_two_folders(run_here, tmp_path, monkeypatch):
    monkeypatch.setattr("time.time", lambda: 1.7e9)
    for _ in range(2):
        new_folder.cache_clear()  # as in a process of its own
        assert run_here(ROOT / "launch.py", "epochs=0")[0]
    assert [path.name[-2:] for path in sorted(tmp_path.glob("outputs/*/*"))] == ["20", "-2"]


def test_what_cannot_be_written_to(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    assert unusable(tmp_path / "new" / "folder") is None
    assert (
        unusable(tmp_path / "file")
        == unusable(tmp_path / "file" / "x")
        == f"{tmp_path / 'file'} is a file, not a folder"
    )
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert unusable(tmp_path / "new") == f"this user may not write into {tmp_path}"
    with pytest.raises(UserError, match="something else is in its place"), held(tmp_path / "file"):
        pass


# Refusals


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """The folder of a run that was interrupted after the first of its two epochs."""
    cwd = tmp_path_factory.mktemp("half")
    folder = cwd / "run"
    local.run(compose(*LAUNCHED), folder, {".hydra/overrides.yaml": OmegaConf.to_yaml(LAUNCHED)})
    for path in (folder / "summary.json", *folder.glob("*_segment.pt"), max((folder / "checkpoints").iterdir())):
        path.unlink()
    assert not (folder / ".lock").exists()
    return folder


@pytest.fixture
def mine(half, tmp_path):
    """A copy of it."""
    shutil.copytree(half, tmp_path / "mine")
    return tmp_path / "mine"


SERVER = ["role=server", "rpc.port=0", "rpc.connect_timeout_s=0.5"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["seed=1", *SERVER], "configured differently: seed (then 0, now 1)"),
        (["epochs=1", *SERVER], "has done 1 of its 2 epochs, and cannot end with epochs=1"),
        (["server.device=cuda:99", *SERVER], "server.device=cuda:99"),
        (["epochs=0"], "epochs=0"),
        (["optimizer.lr=[1, 2", *SERVER], "cannot be read"),
        (["nonsense=1"], "nonsense"),
        (["rpc.token_file=/dev/null/x", *SERVER], "rpc.token_file"),
        ([*SERVER, "rpc.host=192.0.2.1"], "rpc.host=192.0.2.1"),
        (SERVER, "client 0 did not come"),
        (["resume=never", *SERVER], "client 0 did not come"),
        (["log.mlflow=mine"], "log.mlflow=mine"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_start_that_is_refused_changes_nothing(options, words, mine, run_here):
    before = content(mine)
    where = [*LAUNCHED, "hydra.run.dir=mine"] if "resume=never" in options else ["resume=mine"]
    status, out = run_here(ROOT / "launch.py", *where, *options)
    assert status and words in f"{out}{status}" and "Traceback" not in out
    assert content(mine) == before


def test_neither_does_one_where_another_process_writes(mine, run_here):
    with held(mine):
        before = content(mine)
        status, out = run_here(ROOT / "launch.py", "resume=mine")
        assert status and f"is being written to by process {os.getpid()} on" in out and content(mine) == before


@pytest.mark.slow
def test_neither_does_an_old_checkpoint_or_a_full_disk(mine, monkeypatch):
    (path,) = (mine / "checkpoints").iterdir()
    state, before = checkpoints.read(path), content(mine)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    cfg = compose(*LAUNCHED, "seed=7")
    recorder = Recorder(cfg, mine, Display(), {".hydra/overrides.yaml": "- seed=7\n", ".hydra/more.yaml": ""})
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"No space left on device\): make room there"):
            recorder.open(state["recorder"])
    recorder.close()
    assert content(mine) == before
    path.write_bytes(path.read_bytes().replace(b"checkpoint 2", b"checkpoint 1"))
    before = content(mine)
    with pytest.raises(UserError, match="not a checkpoint of this version"):
        local.run(compose(*LAUNCHED), mine)
    assert content(mine) == before


@pytest.mark.slow
def test_it_goes_on_after_them_under_any_name(half, tmp_path, run_here):
    """Refused, moved, and gone on with from elsewhere, for an epoch more."""
    shutil.copytree(half, tmp_path / "mine")
    assert run_here(ROOT / "launch.py", "resume=mine", "seed=1")[0] == 1
    name = "a=b,c (2) [ü] $x 'q'"
    (tmp_path / "mine").rename(tmp_path / name)
    assert run_here(ROOT / "launch.py", f"resume={name}/", "epochs=3")[0] == 0
    folder = tmp_path / name
    assert [line["epoch"] for line in metrics(folder, "epoch")] == [1, 2, 3] and summary(folder)["epochs"] == 3
    assert OmegaConf.load(folder / "config.yaml").epochs == 3
    assert OmegaConf.load(folder / ".hydra" / "overrides.yaml")[-1] == "epochs=3"
    status, out = run_here(ROOT / "launch.py", f"resume={folder}")
    assert status == 0 and "finished before" in out
    status, out = run_here(ROOT / "scripts" / "evaluate.py", f"{name}", "data.root=~/my data (2)")
    assert status == 0 and "as configured" in out
    shutil.rmtree(folder / ".hydra")
    before = content(folder)
    assert run_here(ROOT / "launch.py", f"hydra.run.dir={name}", *LAUNCHED, "seed=1", *SERVER)[0] == 1
    assert content(folder) == before
    status, out = run_here(ROOT / "scripts" / "evaluate.py", f"{name}", "seed=1")
    assert "overrides.yaml, with what the run was started with, and it is not there" in f"{status}"


@pytest.mark.slow
def test_a_run_that_has_finished_without_a_checkpoint_is_not_overwritten(tmp_path):
    OmegaConf.save(compose(*TINY), tmp_path / "config.yaml", resolve=True)
    (tmp_path / "summary.json").write_text('{"test_top1": 0.5}')
    before = content(tmp_path)
    with pytest.raises(UserError, match="has finished, without a checkpoint to go on from"):
        local.run(compose(*TINY, "seed=1"), tmp_path)
    assert content(tmp_path) == before


def test_a_folder_that_is_removed_meanwhile_is_one_sentence(tmp_path):
    recorder = Recorder(compose(*TINY, "num_clients=1"), tmp_path / "run", Display())
    recorder.open(None)
    recorder.start(1)
    recorder.state()
    kept = Checkpoints(tmp_path / "run" / "checkpoints", 1)
    shutil.rmtree(tmp_path / "run")
    for write in (
        recorder.state,
        lambda: recorder.save("client_segment.pt", {}),
        lambda: kept.save(1, {}) or kept.wait(),
    ):
        with pytest.raises(UserError, match="the folder was removed while the run wrote into it"):
            write()
    recorder.close()
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_that_a_newer_one_replaces_while_it_is_read(tmp_path, monkeypatch):
    kept, read = Checkpoints(tmp_path / "checkpoints", keep=1), checkpoints.read
    kept.folder.mkdir()
    for step in (1, 2):
        kept.save(step, {"step": step})
        kept.wait()

    def late(path: Path):
        if path.name.endswith("2.pt"):
            kept.save(3, {"step": 3})
            kept.wait()
        return read(path)

    monkeypatch.setattr(checkpoints, "read", late)
    assert kept.latest() == {"step": 3}


@pytest.mark.slow
def test_two_servers_under_torchrun_in_one_folder(tmp_path):
    options = [*TINY, "epochs=10000", "hydra.run.dir=run"]
    with started([*torchrun(2), *options], tmp_path) as process:
        wait_for(tmp_path / "out.txt", "epoch     2/")
        (tmp_path / "second").mkdir()
        before = content(tmp_path / "run" / ".hydra")
        status, out = run([*torchrun(2), f"resume={tmp_path / 'run'}", "log.error_every=5"], tmp_path / "second")
        assert status and "is being written to by process" in out
        assert content(tmp_path / "run" / ".hydra") == before
        wait_for(tmp_path / "out.txt", "epoch     5/")
        os.kill(process.pid, signal.SIGTERM)
        process.wait(60)
    assert job_folders(tmp_path) == [tmp_path / "run"]


def test_a_system_without_proc_tells_too_when_the_launcher_was_started(monkeypatch, tmp_path):
    here, _ = folder.launcher_started()
    monkeypatch.setattr(folder, "PROC", tmp_path)
    there, text = folder.launcher_started()
    assert abs(here - there) < 3 and folder.launcher_started() == (there, text)
