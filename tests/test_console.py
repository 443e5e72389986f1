"""Where what a run prints cannot be shown."""

import subprocess
import sys

import pytest
from runs import ROOT

LINES = {
    "servers": "from splitlearn.console import Console; tell = Console().print",
    "clients": "from splitlearn.measure.screen import Screen; tell = Screen().tell",
}


@pytest.mark.parametrize("whose", LINES)
@pytest.mark.parametrize("to", ["> /dev/full", "| head -n 1"])
def test_lines_that_cannot_be_shown_end_nothing(whose, to):
    program = f"{LINES[whose]}\nfor _ in range(9999): tell('a line')\nimport sys; print('done', file=sys.stderr)"
    command = ["bash", "-o", "pipefail", "-c", f'{sys.executable} -c "$0" {to}', program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "done\n")


def test_neither_does_a_sentence_on_stderr():
    program = "from splitlearn.console import complain; complain('a sentence'); print('done')"
    command = ["bash", "-c", f'{sys.executable} -c "$0" 2> /dev/full', program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, b"done\n")
