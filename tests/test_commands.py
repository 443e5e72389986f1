"""Every command of README.md and docs/ can be started as it stands there, or stands in CANNOT with the reason."""

import re
import shlex
import sys

import pytest
from runs import ROOT, run
from simulation import compose

from splitlearn import checks
from splitlearn.sweeps import quoted

PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
PROGRAMS = ("python", "python3", "torchrun", "pip", "pytest", "sudo", "iptables", "splitlearn")
FINISHED = "outputs/2026-01-31/12-00-00"  # where the pages suppose a run
SMALL = ["data.max_train_samples=64", "data.max_test_samples=32", "batch_size=16", "epochs=1", "log.tensorboard=false"]
CANNOT = {
    r"pip install|\bpytest\b|\bruff\b": "changes the environment, or is the tests themselves; .ci/run runs it",
    r"^sudo|^iptables": "needs root, and changes the network",
    r"…|<folder>|<run>|<a long": "is not written in full",
    r"scripts/benchmarks/": "takes minutes to hours; tests/test_scripts.py runs them in small",
    r"data\.root=|multirun/cifar10|data\.download=true|experiment=": "needs a data set that has to be downloaded",
    r"role=": "takes two terminals or machines; tests/test_launch.py and test_membership.py start them together",
    r"arch=hf arch\.model=": "needs a model's files: tests/tasks/language/test_hf.py",
    r"arch\.weights=": "needs a file of weights: tests/tasks/test_pretrained.py",
    r"--nnodes|--master-addr": "takes two machines",
    r"num_clients=100": "takes minutes; tests/roles/test_rounds.py starts forty",
    r"onebit|forward_only|periodic|diabetes|shuffle|mine/": "needs files of its page: tests/test_extending.py",
    r"document_config|test_golden": "writes into the clone; tests/test_configuration_page.py compares what it writes",
}


def commands_of(page: str) -> list[str]:
    """The commands in blocks of bash, and in the text, a line each, without comments."""
    text = (ROOT / page).read_text()
    found = []
    for block in re.findall(r"```bash\n(.*?)```", text, re.S):
        found += [line for line in block.replace("\\\n", " ").splitlines()]
    rest = re.sub(r"```.*?```", "", text, flags=re.S)
    found += [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", rest) if " " in code]
    found = [re.sub(r"\s+# .*|^# .*", "", line).strip() for line in found]
    return [line for line in found if is_command(line)]


def is_command(line: str) -> bool:
    words = [word for word in line.split() if not re.fullmatch(r"[A-Z_]+=\S*", word)]
    return len(words) > 1 and words[0].rpartition("/")[2] in PROGRAMS and not line.startswith("sudo.")


COMMANDS = [(page, line) for page in PAGES for line in dict.fromkeys(commands_of(page))]
LAUNCHES = [line for _, line in COMMANDS if "launch.py" in line and "…" not in line and "mine/" not in line]


def why_not(line: str) -> str | None:
    return next((why for pattern, why in CANNOT.items() if re.search(pattern, line)), None)


def overrides_of(line: str) -> list[str]:
    words = shlex.split(line.split("launch.py", 1)[1])
    return [word for word in words if word.startswith("~") or ("=" in word and not word.startswith("-"))]


@pytest.mark.parametrize("line", dict.fromkeys(LAUNCHES))
def test_it_is_no_mistake(line):
    if re.search("onebit|forward_only|periodic|diabetes|shuffle", line):
        pytest.skip("of the files that its page shows")
    if "noise.delta=" in line:
        pytest.importorskip("dp_accounting")
    words = [
        word.replace("<folder>", "folder").replace("<name>", "resnet18")
        for word in overrides_of(line)
        if not word.startswith("resume=outputs")
    ]
    pairs = [(key, choices(value)) for key, _, value in (word.partition("=") for word in words) if "hydra" not in key]
    for number in range(max((len(values) for _, values in pairs), default=1)):
        words = [key if key[0] == "~" else f"{key}={given(values[number % len(values)])}" for key, values in pairs]
        checks.check(compose(*words))


def choices(value: str) -> list[str]:
    """What a sweep goes over."""
    if value.startswith(("interval", "tag")):
        return ["0.1"]
    return [value] if value.startswith("[") else value.split(",")


def given(choice: str) -> str:
    return choice if re.fullmatch(r"[\w.@/-]*|\[.*\]", choice) else quoted(choice)


def test_the_programs_are_there():
    named = {
        word for _, line in COMMANDS for word in line.split() if re.fullmatch(r"(scripts|examples|tests)/.*\.py", word)
    }
    assert len(named) > 10 and {name for name in named if not (ROOT / name).exists()} == set()


def test_what_cannot_be_run_is_there():
    assert [pattern for pattern in CANNOT if not any(re.search(pattern, line) for _, line in COMMANDS)] == []


def small(line: str) -> list[str]:
    """The command on this clone, with little data, and two values at most of what a sweep goes over."""
    words = []
    for word in shlex.split(line.replace("<name>", "resnet18")):
        key, is_option, value = word.partition("=")
        if is_option and "," in value and not re.match(r"[\[(]|interval|tag", value):
            value = ",".join(value.split(",")[-2:])
            word = f"{key}={value}"
        words.append(word)
    environment = [word for word in words if re.fullmatch(r"[A-Z_]+=\S*", word)]
    words = words[len(environment) :]
    if words[0] == "torchrun":
        words[0:1] = [sys.executable, "-m", "torch.distributed.run"]
    else:
        words[0] = sys.executable
    words = ["launch.py" if word == "../splitlearn/launch.py" else word for word in words]  # from a folder of one's own
    words = [str(ROOT / word) if re.match("launch.py$|scripts/|examples/", word) else word for word in words]
    if "launch.py" in line and not re.search("resume=|--help|--cfg", line):
        words += SMALL
        if "sweep=digits" in line:
            words += ["cut=deep", "compressor=none,ms", "seed=0"]
        if "optuna" in line:
            words += ["hydra.sweeper.n_trials=2"]
    return words


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", sorted({page for page, line in COMMANDS if not why_not(line)}))
def test_it_runs(page, tmp_path):
    """All of a page, in its order, in one folder."""
    lines = [line for where, line in COMMANDS if where == page and not why_not(line)]
    if any("outputs/" in line for line in lines):
        status, out = run([*small("python launch.py"), f"hydra.run.dir={FINISHED}"], tmp_path)
        assert status == 0, out
    for name, text in re.findall(r"`(\w+\.py)`:\n\n```python\n(.*?)```", (ROOT / page).read_text(), re.S):
        (tmp_path / name).write_text(text)
    for line in lines:
        status, out = run(small(line), tmp_path, timeout_s=300)
        assert status == 0 and "Traceback" not in out, f"{line}:\n{out}"
