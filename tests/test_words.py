"""Names of folders that people have, as the shell passes them."""

import shlex
import sys

import pytest
from omegaconf import OmegaConf
from runs import ROOT
from simulation import compose

from splitlearn.errors import UserError, typed
from splitlearn.words import quoted, readable, unquoted

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
        (f"resume={'x' * 300}", ["cannot be read (File name too long)", "give a folder that this user may read"]),
        ("resume=file", ["no run was started in that folder"]),
        ("hydra.run.dir=file", ["file is a file, not a folder"]),
        ("hydra.run.dir='file/below'", ["file is a file, not a folder"]),
    ],
)
def test_a_folder_that_cannot_be_used_is_one_sentence(word, words, tmp_path, run_here):
    (tmp_path / "file").touch()
    (tmp_path / "copied").mkdir()
    (tmp_path / "copied" / "config.yaml").touch()
    status, out = run_here(ROOT / "launch.py", word)
    assert status and all(text in f"{status}{out}" for text in words) and "Traceback" not in out


def test_a_client_may_be_given_folders_of_the_servers_machine(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    argv = ["launch.py", "role=client", f"resume={tmp_path / 'file' / 'run'}"]
    monkeypatch.setattr(sys, "argv", argv)
    assert commandline.read(argv)[-1] == "hydra.mode=RUN"
