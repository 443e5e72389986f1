"""What messages may say: the sealed unpickler, and operators."""

import os
import pickle
import threading
import time
from collections import Counter

import pytest
import torch
from torch.distributed.rpc import internal
from torchvision.io import decode_png, encode_png

from splitlearn.transport import delivery, guard, operators
from splitlearn.transport.delivery import deliver
from splitlearn.transport.unpickler import closed


def test_no_operator_is_left_to_messages_and_torch_goes_on():
    with closed([]):
        left = {schema.name for schema in torch._C._jit_get_all_schemas()}
        assert left <= {"aten::matrix_H", "aten::numpy_T", "aten::mT", "aten::mH"}  # which only look at a tensor
        image = torch.randint(256, (3, 8, 8), dtype=torch.uint8)
        assert torch.equal(decode_png(encode_png(image)), image)  # by torch.ops.image
        layer = torch.nn.Linear(2, 2)
        layer(torch.ones(1, 2)).sum().backward()
        torch.optim.Adam(layer.parameters()).step()
        compiled = torch.compile(torch.relu, backend="eager")
        assert torch.equal(compiled(torch.tensor([-1.0, 1.0])), torch.tensor([0.0, 1.0]))


def test_a_torch_that_keeps_them_elsewhere_is_told_of_and_those_for_files_refuse(monkeypatch, caplog, tmp_path):
    def missing(*_):
        raise OSError

    monkeypatch.setattr(operators.ctypes, "CDLL", missing)
    monkeypatch.setattr(torch._C, "_jit_get_schemas_for_operator", lambda name: [name])
    monkeypatch.setattr(operators, "_replaced", [])  # what it replaces comes back with its end
    (tmp_path / "secret").write_bytes(b"secret!!")
    with closed([]):
        assert "let only your machines reach it, or use torch 2.11 to 2.15" in caplog.text
        with pytest.raises(RuntimeError, match="aten::from_file is not allowed here"):
            torch.from_file(str(tmp_path / "secret"), False, 2)


@pytest.mark.parametrize(
    "message, told",
    [
        (pickle.dumps(os.system), "posix.system is not allowed"),
        (pickle.dumps(threading.Thread), "threading.Thread is not allowed"),
        (
            b"\x80\x02csplitlearn.transport.delivery\ndeliver\n(N}X\x01\x00\x00\x00xNs\x74b.",
            "setting an attribute is not",
        ),
        (b"noise", "opcode b'n' unknown"),
        (b"", "exhausted"),
    ],
    ids=["function", "class", "attribute", "noise", "nothing"],
)
def test_a_message_that_asks_for_more_is_refused_and_told_of_once(message, told, caplog):
    with closed([deliver]), pytest.raises((pickle.UnpicklingError, ValueError), match=told):
        internal.deserialize(message, [])
    assert caplog.text.count("refused message") == 1 and told in caplog.text


def test_a_message_names_no_lines_of_its_own_in_the_log(caplog):
    name = b"x\nWARNING all is fine\x1b[31m" + b"A" * 100_000
    message = b"\x80\x04\x8c\x01aX" + len(name).to_bytes(4, "little") + name + b"\x93."
    with closed([deliver]), pytest.raises(pickle.UnpicklingError, match="is not allowed in a message") as caught:
        internal.deserialize(message, [])
    assert r"refused message: a.x\nWARNING all is fine\x1b[31mAA" in caplog.text
    assert len(caplog.text) < 1000 and len(str(caught.value)) < 1000


def test_what_no_call_begins_with_is_neither_signed_nor_shown(caplog, monkeypatch):
    class Server:
        def local_value(self):
            return self

    def key_of(*_):
        raise AssertionError("it was looked up")

    server = Server()
    server.desk = server.visits = server
    server.key_of = key_of
    monkeypatch.setattr(delivery, "served", server)
    monkeypatch.setattr(guard, "_lines", Counter())
    endless = "a"
    for _ in range(12):
        endless = [endless] * 100  # a hundred to the power of twelve
    for what in (
        (0, endless, 1, "step"),
        (0, "session", endless, "step"),
        (0, "session", 10**5000, "step"),
        (0, "session", 1, endless),
        (0, "session", 1, "step\n\x1b[31m"),
        (0, "session", 1, "a" * 65),
        (True, "session", 1, "step"),
        (endless,),
    ):
        assert delivery.deliver(*what, *("signature", ()) * (len(what) == 4)).wait()[0] == "unsigned"
    assert caplog.text.count("refused call: it is not signed: it does not say whose") == 8


def test_a_stranger_who_tries_for_ever_does_not_fill_the_log(caplog, monkeypatch):
    monkeypatch.setattr(guard, "_lines", Counter())
    monkeypatch.setattr(guard, "_minute_began", time.monotonic())
    before = guard.refusals["connection"]
    for _ in range(1000):
        guard.refuse("connection", "noise")
    guard.refuse("call", "of another kind")
    assert guard.refusals["connection"] == before + 1000
    assert caplog.text.count("refused connection: noise") == guard.MAX_LINES and "of another kind" in caplog.text
    monkeypatch.setattr(guard, "_minute_began", time.monotonic() - 61)
    guard.refuse("connection", "a minute later")
    assert f"refused connection: {1000 - guard.MAX_LINES} more until now" in caplog.text
    assert "a minute later" in caplog.text
