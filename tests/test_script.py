"""How scripts end."""

import signal
import subprocess
import sys

import pytest
from runs import ROOT

# The first place of the path is the current folder with -c, and the script's own without.
BEGIN = f"import sys; sys.path[0] = {str(ROOT / 'scripts')!r}; from script import start"


def started(*lines: str) -> subprocess.Popen:
    """A script whose main is these lines."""
    text = "\n".join([BEGIN, "def main():", *(f"    {line}" for line in lines), "start(main)"])
    return subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (
            ["from splitlearn.errors import UserError", "raise UserError('rate=-1 must be positive')"],
            "rate=-1 must be positive",
        ),
        (["open('/nowhere/run.json')"], "/nowhere/run.json: No such file or directory"),
    ],
)
def test_a_mistake_is_one_line(lines, told):
    out, err = (script := started(*lines)).communicate(timeout=60)
    assert (script.returncode, out, err) == (1, "", told + "\n")


@pytest.mark.parametrize("lines", [["raise ValueError('of the code')"], ["raise OSError('of a socket')"]])
def test_a_mistake_of_the_code_has_a_traceback(lines):
    _, err = (script := started(*lines)).communicate(timeout=60)
    assert script.returncode == 1 and err.startswith("Traceback")


def test_overrides_may_stand_before_between_and_behind_options():
    texts = {path.name: path.read_text() for path in (ROOT / "scripts").rglob("*.py")}
    takers = {name for name, text in texts.items() if 'add_argument("overrides", nargs=' in text}
    assert {"attack.py", "hidden_states.py", "scaling.py"} <= takers
    assert not {name for name in takers if ".parse_args()" in texts[name]}


def test_a_users_own_module_is_found_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("NAME = 'mine'")
    (tmp_path / "json.py").write_text("")  # which is not taken for another's
    out, err = (script := started("import json, mine", "print(json.dumps(mine.NAME))")).communicate(timeout=60)
    assert (script.returncode, out, err) == (0, '"mine"\n', "")


def test_ctrl_c_is_one_line():
    script = started("import time", "print('begun', flush=True)", "time.sleep(60)")
    assert script.stdout.readline() == "begun\n"
    script.send_signal(signal.SIGINT)
    _, err = script.communicate(timeout=60)
    assert (script.returncode, err) == (130, "\ninterrupted\n")


def test_a_reader_may_stop_reading():
    script = started("print('a row\\n' * 10**6)")
    assert script.stdout.readline() == "a row\n"
    script.stdout.close()
    assert (script.stderr.read(), script.wait(60)) == ("", 1)
