import pytest

from splitlearn.errors import UserError
from splitlearn.transport import read_token
from splitlearn.transport.token import TOKEN_VARIABLE, is_signed, sign

TOKEN = b"secret"


@pytest.mark.parametrize("token", ["", "fifteen letters"])
def test_a_short_token_is_refused(token, monkeypatch, tmp_path):
    path = tmp_path / "token"
    path.touch(mode=0o600)
    path.write_text(token)
    with pytest.raises(UserError, match=rf"rpc.token_file={path} has {len(token)} bytes and could be guessed"):
        read_token(str(path))
    if token:
        monkeypatch.setenv(TOKEN_VARIABLE, token)
        with pytest.raises(UserError, match="SPLITLEARN_TOKEN has 15 bytes"):
            read_token(str(path))


def test_a_token_is_made_once_and_is_private(tmp_path):
    path = tmp_path / "config" / "token"
    made = read_token(str(path))
    assert len(made) == 64 and read_token(str(path)) == made
    assert path.stat().st_mode & 0o777 == 0o600
    assert [other.name for other in path.parent.iterdir()] == ["token"]


def test_a_token_that_others_can_read_is_refused(tmp_path):
    path = tmp_path / "token"
    path.write_text("public")
    path.chmod(0o644)
    with pytest.raises(UserError, match=r"rpc.token_file=.* is not private: chmod 600"):
        read_token(str(path))


def test_the_environments_token_comes_first(monkeypatch, tmp_path):
    monkeypatch.setenv(TOKEN_VARIABLE, "from the environment")
    assert read_token(str(tmp_path / "token")) == b"from the environment"
    assert not list(tmp_path.iterdir())


def test_a_signature_is_of_one_call_and_one_token():
    signature = sign(TOKEN, 0, "session", 1, "step")
    assert is_signed(signature, TOKEN, 0, "session", 1, "step")
    others = [(TOKEN, 1, "session", 1, "step"), (TOKEN, 0, "session", 2, "step"), (b"other", 0, "session", 1, "step")]
    assert not any(is_signed(signature, *other) for other in others)
    assert not any(is_signed(no_signature, TOKEN, 0) for no_signature in (None, 7, "", b"", [], "é"))
