"""Names of folders that people have, as the shell passes them."""

import shlex
import shutil
import sys

import pytest
from omegaconf import OmegaConf
from runs import ROOT
from simulation import compose

from splitlearn.errors import UserError, typed
from splitlearn.words import flags_first, quoted, readable, unquoted

sys.path.insert(0, str(ROOT))
from splitlearn import commandline

NAMES = [
    "seed=1,cut=deep",
    "a,b",
    "My run (2)",
    "[a]",
    "{a}",
    "it's",
    '"quoted"',
    "Müller",
    "日本",
    "$HOME",
    "${oc.env:HOME}",
    "\\${x}",
    "back\\slash",
    "ends in\\",
    "-dash",
    "~tilde",
    "1_000",
    "1e5",
    "007",
    "true",
    "null",
    "a:b;c&d|e!f#g*h?i<j>k^l`m%n@o+p",
    " spaces ",
    "two\nlines",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_is_gone_on_with_as_the_shell_passes_it(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name / ".hydra").mkdir(parents=True)
    OmegaConf.save(["epochs=3", "seed=1", "role=server"], tmp_path / name / ".hydra" / "overrides.yaml")
    for folder in (name, f"{name}/", f"./{name}", str(tmp_path / name)):
        word = f"resume={folder}"
        assert shlex.split(typed("resume", folder)) == [word]
        argv = readable(commandline.go_on(["launch.py", word, "seed=2"])[1:])
        assert [word for word in argv if not word.startswith("hydra.")] == ["epochs=3", "seed=2"]
        cfg = compose("+hydra_run_dir=" + next(word for word in argv if "run.dir=" in word).partition("=")[2])
        assert (tmp_path / cfg.hydra_run_dir).samefile(tmp_path / name)


@pytest.mark.parametrize("name", NAMES)
def test_a_path_that_exists_is_taken_as_it_stands(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name != "null":  # which is no path at all
        (tmp_path / name).mkdir()
        (word,) = readable([f"data.root={name}"])
        assert compose("data=image_folder", word).data.root == name


def test_what_is_meant_for_hydra_stays():
    words = ["-m", "--config-dir=x", "seed=0,1", "data.root=/a,/b", "optimizer={lr: 0.1}", "data.root='a b'", "~sweep"]
    words += ["data.root=null", "hydra.run.dir=${now:%Y}/x", "resume=auto", "link.up_mbits=20"]
    assert readable(words) == words
    assert readable(["hydra.run.dir=${now:%Y}/a=1,b=2"]) == ["hydra.run.dir='${now:%Y}/a=1,b=2'"]  # override_dirname's
    assert readable(["hydra.run.dir=a,b"]) == ["hydra.run.dir='a,b'"]


def test_home_is_found(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert readable(["data.root=~/cifar", "rpc.token_file=~/key"]) == [
        "data.root=/home/me/cifar",
        "rpc.token_file=/home/me/key",
    ]


@pytest.mark.parametrize("word", ["log.wandb=a (b)", "log.wandb=Müller", "log.mlflow=a=b"])
def test_another_value_that_hydra_cannot_read_is_told_with_its_quotes(word):
    with pytest.raises(UserError, match="cannot be read") as caught:
        readable([word])
    (again,) = shlex.split(str(caught.value).rpartition("twice: ")[2])
    key, _, value = word.partition("=")
    assert readable([again]) == [again] and OmegaConf.select(compose(again), key) == value


def test_quotes_come_off_again():
    assert [unquoted(quoted(name)) for name in NAMES if "${" not in name] == [n for n in NAMES if "${" not in n]


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("resume=nowhere", ["no run was started in that folder"]),
        (
            "resume=copied",
            ["there is no copied/.hydra/overrides.yaml any more", "give them again, with hydra.run.dir="],
        ),
        ("resume=torn", ["torn/.hydra/overrides.yaml is not whole, with the options", "with hydra.run.dir="]),
        (f"resume={'x' * 300}", ["cannot be read (File name too long)", "give a folder that this user may read"]),
        ("resume=file", ["no run was started in that folder"]),
        ("hydra.run.dir=file", ["file is a file, not a folder"]),
        ("hydra.run.dir='file/below'", ["file is a file, not a folder"]),
        ("hydra.run.dir=", ["hydra.run.dir= is blank: name a folder, or leave it out"]),
        ("-m hydra.sweep.dir=", ["hydra.sweep.dir= is blank"]),
        ("hydra.sweep.dir=x", ["hydra.sweep.dir=x is not heeded here", "is hydra.run.dir=<folder>", "or add -m"]),
        ("-m hydra.run.dir=x", ["hydra.run.dir=x is not heeded here", "is hydra.sweep.dir=<folder>", "or leave -m"]),
        ("sweep=grid hydra.run.dir=x", ["hydra.run.dir=x is not heeded here"]),
        ("resume=d1 hydra.run.dir=x", ["resume=d1 goes on in that folder: leave hydra.run.dir=x out"]),
    ],
)
def test_a_folder_that_cannot_be_used_is_one_sentence(word, words, tmp_path, run_here):
    (tmp_path / "file").touch()
    (tmp_path / "copied").mkdir()
    (tmp_path / "copied" / "config.yaml").touch()
    shutil.copytree(tmp_path / "copied", tmp_path / "torn")
    (tmp_path / "torn" / ".hydra").mkdir()
    (tmp_path / "torn" / ".hydra" / "overrides.yaml").touch()
    status, out = run_here(ROOT / "launch.py", *word.split())
    assert status and all(text in f"{status}{out}" for text in words) and "Traceback" not in out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("seed=1 cut=deep", "seed=1 cut=deep"),
        ("seed=1 --config-dir a=b cut=deep -m", "--config-dir a=b -m -- seed=1 cut=deep"),
        ("-cd mine -m ~sweep seed=1", "-cd mine -m -- ~sweep seed=1"),
        ("cut=deep --info seed=1 -c job", "--info -c job -- cut=deep seed=1"),
        ("--info config cut=deep", "--info config -- cut=deep"),
    ],
)
def test_flags_may_stand_anywhere(words, expected):
    assert flags_first(words.split()) == expected.split()


@pytest.fixture
def begun(tmp_path):
    """begun("key=value", …): a run was started in d1 with these, and with files of options of the user's own."""
    (tmp_path / "conf" / "optimizer").mkdir(parents=True)
    (tmp_path / "conf" / "optimizer" / "mine.yaml").write_text("{_target_: torch.optim.SGD, lr: 0.125}")

    def begin(*words, **choices):
        source = {"path": str(tmp_path / "conf"), "schema": "file", "provider": "command-line"}
        about = {"runtime": {"config_sources": [source], "choices": choices}, "job": {"num": "???"}}
        (tmp_path / "d1" / ".hydra").mkdir(parents=True)
        OmegaConf.save({"hydra": about}, tmp_path / "d1" / ".hydra" / "hydra.yaml")
        OmegaConf.save([*words], tmp_path / "d1" / ".hydra" / "overrides.yaml")

    return begin


@pytest.mark.parametrize(
    "flags",
    [["--cfg", "job", "resume=d1", "epochs=2"], ["resume=d1", "epochs=2", "--config-dir", "conf", "--cfg", "job"]],
)
def test_a_run_goes_on_with_ones_own_files_and_any_flags(flags, begun, run_here):
    begun("optimizer=mine", optimizer="mine")
    status, out = run_here(ROOT / "launch.py", *flags)
    assert status == 0 and "lr: 0.125\n" in out and "\nepochs: 2\n" in out, out


def test_one_whose_own_files_have_gone_is_one_sentence(begun, tmp_path, run_here):
    begun("optimizer=mine", optimizer="mine")
    (tmp_path / "conf").rename(tmp_path / "moved")
    status, out = run_here(ROOT / "launch.py", "resume=d1", "--cfg", "job")
    assert status == 1 and f"{tmp_path / 'conf'}, which is not there any more: name the folder" in out
    status, out = run_here(ROOT / "launch.py", "resume=d1", "--cfg", "job", "hydra.searchpath=[file://moved]")
    assert status == 0 and "lr: 0.125\n" in out


@pytest.mark.parametrize("words", [["-m", "resume=d1", "seed=0,1"], ["resume=d1", "sweep=grid"]])
def test_a_sweep_does_not_go_on_in_one_runs_folder(words, begun, run_here):
    begun()
    status, out = run_here(ROOT / "launch.py", *words)
    assert status == 1 and out == "resume=d1 goes on with one run: leave out what makes a sweep of it, -m or sweep=\n"


BEFORE = ["schedule=step", "schedule.step_size=2", "compressor=qu", "compressor.bits=4", "compressor@downlink=rt"]
BEFORE += ["downlink.ratio=0.7", "+schedule.gamma=0.5", "seed=1"]
CHOSEN = {"schedule": "step", "compressor": "qu", "compressor@downlink": "rt", "optimizer": "mine"}


@pytest.mark.parametrize(
    ("now", "left"),
    [
        (["seed=2"], BEFORE[:7]),
        (["compressor=qu", "optimizer=mine"], [*BEFORE[:2], *BEFORE[3:]]),
        (["schedule=constant"], [*BEFORE[2:6], "seed=1"]),
        (["compressor=none"], [*BEFORE[:2], *BEFORE[4:]]),
        (["compressor@downlink=none"], [*BEFORE[:4], *BEFORE[6:]]),
        (["codecs=none"], [*BEFORE[:2], *BEFORE[6:]]),
        (["schedule={step_size: 3}"], BEFORE[1:]),
    ],
    ids=lambda words: words[0],
)
def test_what_a_group_was_before_goes_with_its_options(now, left, begun, tmp_path, monkeypatch):
    begun(*BEFORE, **CHOSEN)
    monkeypatch.chdir(tmp_path)
    argv = commandline.go_on(["launch.py", "resume=d1", *now])
    assert [word for word in argv[1:] if not word.startswith("hydra.")] == [*left, *now]


def test_a_client_may_be_given_folders_of_the_servers_machine(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    argv = ["launch.py", "role=client", f"resume={tmp_path / 'file' / 'run'}"]
    monkeypatch.setattr(sys, "argv", argv)
    assert commandline.read(argv)[-1] == "hydra.mode=RUN"
