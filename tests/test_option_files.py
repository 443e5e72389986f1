"""A file of options of the user's own that cannot be read is one sentence that names it."""

import pytest
from runs import ROOT

from splitlearn.compose import compose
from splitlearn.errors import UserError
from splitlearn.kinds import options_of

CLASS = b"_target_: splitlearn.exchange.labels_up.LabelsUp\n"
MISTAKES = {
    b"_target_: [unfinished\nname: x\n": r"mine.yaml:2 is no YAML: ",
    b"name: x\nname: y\n": r"mine.yaml:2 is no YAML: found duplicate key name$",
    b"name: x\n\tbits: 3\n": r"mine.yaml:2 is no YAML: found .*tab|mine.yaml:2 is no YAML: found character '\\t'",
    b"name: *x\n": r"mine.yaml:1 is no YAML: found undefined alias",
    b"name: !!python/object:os.system x\n": r"mine.yaml:1 is no YAML: could not determine a constructor for the tag",
    b"name: \x00\n": r"mine.yaml is no YAML: unacceptable character",
    "name: ä\n".encode("latin-1"): r"mine.yaml cannot be read: it is not in UTF-8$",
}
MISTAKES_FOR_HYDRA = {
    b"# @package a b c\n" + CLASS: r"mine.yaml cannot be read: Too many components in '@package a b c'$",
    b"defaults: 3\n" + CLASS: r"Invalid defaults list in 'exchange/mine', defaults must be a list",
    b"defaults: [nothere]\n" + CLASS: r"the defaults of exchange/mine.yaml name exchange/nothere, and there is no",
    b"defaults:\n  - foo: bar\n" + CLASS: r"the defaults of exchange/mine.yaml name exchange/foo/bar, and there is",
    b"defaults: [mine]\n" + CLASS: r"exchange/mine.yaml is among its own defaults, or",
}


@pytest.fixture
def own(tmp_path):
    """own(bytes): a folder of options that has them as exchange/mine.yaml."""

    def write(text):
        path = tmp_path / "conf" / "exchange" / "mine.yaml"
        path.parent.mkdir(parents=True)
        path.write_bytes(text)
        return path

    return write


@pytest.mark.parametrize("text", [*MISTAKES, *MISTAKES_FOR_HYDRA])
def test_beside_the_house(text, own):
    path = own(text)
    with pytest.raises(UserError, match=(MISTAKES | MISTAKES_FOR_HYDRA)[text]) as told:
        compose(f"hydra.searchpath=[file://{path.parents[1]}]", "exchange=mine")
    assert "\n" not in str(told.value) and (text in MISTAKES) <= str(told.value).startswith(str(path))


@pytest.mark.parametrize("text", [*MISTAKES, b"- a\n- b\n"])
def test_in_the_house(text, own):
    path = own(text)
    with pytest.raises(
        UserError, match=MISTAKES.get(text, "has to be options, each a line with a key, a colon")
    ) as told:
        options_of(path)
    assert str(told.value).startswith(str(path))


def test_a_start_says_so(own, run_here):
    path = own(b"name: x\nname: y\n")
    status, out = run_here(ROOT / "launch.py", "--config-dir", str(path.parents[1]), "exchange=mine")
    assert status == 1 and out.strip() == f"{path}:2 is no YAML: found duplicate key name"


def test_what_else_hydra_may_meet_stays_as_it_is(monkeypatch):
    monkeypatch.setattr("hydra.compose", lambda *_: [].pop())
    with pytest.raises(IndexError):
        compose()
