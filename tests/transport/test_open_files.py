"""Strangers take no file that a run needs."""

import os
import resource
import subprocess
import sys
import time

import pytest

from splitlearn.errors import UserError
from splitlearn.transport import files
from splitlearn.transport.frontdesk import FrontDesk

STRANGERS = """
import socket, sys
kept = [socket.create_connection(("127.0.0.1", int(sys.argv[1]))) for _ in range(int(sys.argv[2]))]
print("there", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def few_files():
    """Soft limits as where nobody has raised them."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_as_many_strangers_as_may_come_leave_files_for_a_checkpoint(few_files):
    files.allow_files(90, one_machine=False)
    desk = FrontDesk("127.0.0.1", 0, str, 90, b"secret")
    held = [os.dup(0) for _ in range(10 * 90)]  # the clients'
    here, command = desk._strangers._here, [sys.executable, "-c", STRANGERS, str(desk.port), "450"]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as strangers:
        assert strangers.stdout.readline() == "there\n"
        num = -1
        while len(here) > num:  # some wait to be accepted
            num = len(here)
            time.sleep(0.5)
        open(os.devnull).close()
    desk.close()
    for number in held:
        os.close(number)


@pytest.mark.parametrize("one_machine", [True, False])
def test_a_system_that_allows_too_few_is_one_sentence(one_machine, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 1024))
    set_to = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: set_to.append(limits))
    files.allow_files(50, one_machine)
    assert 256 < set_to[0][0] <= set_to[0][1] == 1024
    with pytest.raises(UserError, match=r"num_clients=100 takes 1,.* open files, .* allows a process 1,024: raise"):
        files.allow_files(100, one_machine)
