"""Why a class of the user's own cannot be had is one sentence, with the file and the line, whatever key names it."""

import sys

import pytest
from runs import ROOT, TINY

from splitlearn.errors import UserError
from splitlearn.targets import imported, parameters_of

MODULES = {
    "lacks": "import not_installed\n",
    "breaks": "\n\nraise KeyError('here')\n",
    "unfinished": "class Net:\n    def f(:\n",
    "stale": "from splitlearn.errors import Gone\n",
    "ends": "import sys\nsys.exit(3)\n",
    "deep": "import json\njson.loads('{')\n",
    "inner/__init__": "",
    "inner/lacks": "import not_installed\n",
    "fine": "class Network:\n    class Inner:\n        def __init__(self, width, depth=1): pass\n\nWIDTH = 3\n",
}


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder of modules that can be imported."""
    for name, text in MODULES.items():
        path = tmp_path / "own" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        monkeypatch.delitem(sys.modules, name.removesuffix("/__init__").replace("/", "."), raising=False)
    monkeypatch.syspath_prepend(tmp_path / "own")
    return tmp_path / "own"


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("lacks.Net", "{own}/lacks.py:1: ModuleNotFoundError: No module named 'not_installed'"),
        ("inner.lacks.Net", "{own}/inner/lacks.py:1: ModuleNotFoundError: No module named 'not_installed'"),
        ("breaks.Net", "{own}/breaks.py:3: KeyError: 'here'"),
        ("unfinished.Net", "{own}/unfinished.py:2: invalid syntax"),
        ("stale.Net", "{own}/stale.py:1: ImportError: cannot import name 'Gone' from 'splitlearn.errors'"),
        ("ends.Net", "{own}/ends.py:2: SystemExit: 3"),
        ("deep.Net", "{own}/deep.py:2: JSONDecodeError: Expecting property name"),
        (
            "nowhere.Net",
            "there is no module nowhere in the current folder, next to launch.py, or in one that PYTHONPATH",
        ),
        ("inner.Net", "{own}/inner/__init__.py has no Net"),
        ("fine.Netwrok", "{own}/fine.py has no Netwrok: did you mean Network?"),
        ("fine.Network.Iner", "fine.Network has no Iner: did you mean Inner?"),
        ("Net", "it has to be <module>.<class or function>"),
        ("fine.", "it has to be <module>.<class or function>"),
        ("", "it has to be <module>.<class or function>"),
        ("??? ", "it has to be <module>.<class or function>"),
    ],
)
def test_why_it_cannot_be_imported(target, why, own):
    with pytest.raises(UserError) as told:
        imported(target, "arch._target_")
    assert str(told.value).startswith(f"arch._target_={target} cannot be imported: {why.format(own=own)}")
    assert "\n" not in str(told.value)


def test_a_file_in_the_house_has_its_line_too(own, monkeypatch):
    monkeypatch.setattr("splitlearn.exchange.__path__", [str(own)])
    with pytest.raises(UserError, match=rf": {own}/breaks.py:3: KeyError: 'here'$"):
        imported("splitlearn.exchange.breaks.Mine", "exchange._target_")


def test_what_is_there(own):
    assert imported("fine.Network.Inner", "arch._target_").__qualname__ == "Network.Inner"
    assert imported("xml.dom.minidom.Node", "arch._target_").__name__ == "Node"
    assert list(parameters_of("fine.Network.Inner", "arch._target_")) == ["width", "depth"]
    assert not parameters_of("builtins.dict", "arch._target_")  # which does not say
    with pytest.raises(UserError, match=r"^arch\._target_=fine\.WIDTH is a int, where a class or function is needed$"):
        parameters_of("fine.WIDTH", "arch._target_")


@pytest.mark.parametrize(
    "words",
    [
        ["arch=own", "arch._target_=unfinished.Net"],
        ["task=causal_lm", "arch._target_=unfinished.Net"],
        ["data=custom", "data._target_=unfinished.Net"],
        ["exchange._target_=unfinished.Net"],
        ["topology._target_=unfinished.Net"],
        ["defence=noise", "defence.noise._target_=unfinished.Net"],
        ["optimizer._target_=unfinished.Net"],
        ["schedule._target_=unfinished.Net"],
        ["compressor._target_=unfinished.Net"],
    ],
    ids=" ".join,
)
def test_each_key_that_names_a_class_says_so(words, own, run_here):
    status, out = run_here(ROOT / "launch.py", *TINY, *words)
    last = out.splitlines()[-1]
    assert status == 1 and "Traceback" not in out, out
    assert last.endswith(f"_target_=unfinished.Net cannot be imported: {own}/unfinished.py:2: invalid syntax"), out
