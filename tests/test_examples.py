"""examples/ and the networks of docs/networks.md run as they stand."""

import json
import re
import sys

import pytest
from runs import LAUNCH, ROOT, TINY, job_folders, run, summary

EXAMPLES = ROOT / "examples"
LINE = re.compile(r"epoch (\d+): loss ([\d.]+), ([\d,]+) bytes up instead of ([\d,]+)")
PAGE = (ROOT / "docs" / "networks.md").read_text()


def assert_learns(text: str) -> None:
    lines = [[float(word.replace(",", "")) for word in line] for line in LINE.findall(text)]
    assert [line[0] for line in lines] == list(range(1, 11))
    assert lines[0][1] > 0.3 > 0.15 > lines[-1][1]
    assert all(up < instead / 5 for _, _, up, instead in lines)


def test_a_loop_of_ones_own(tmp_path):
    status, out = run([sys.executable, str(EXAMPLES / "own_loop.py")], tmp_path, PYTHONPATH=str(ROOT))
    assert status == 0, out
    assert_learns(out)


def cells() -> list[str]:
    notebook = json.loads((EXAMPLES / "own_loop.ipynb").read_text())
    assert not any(cell.get("outputs") for cell in notebook["cells"]), "clear its outputs"
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_has_the_same_code_as_the_script_and_the_page():
    script = (EXAMPLES / "own_loop.py").read_text().split('"""', 2)[2]
    plain = re.sub(r"\s+", " ", script.replace('if __name__ == "__main__":', "")).strip()
    assert re.sub(r"\s+", " ", " ".join(cells())).strip() == plain
    assert len([line for line in script.splitlines() if line.strip()]) <= 44
    (shown,) = re.findall(r"```python\n(def server.*?)```", PAGE, re.S)
    assert shown.strip() in script


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(EXAMPLES / "own_loop.ipynb", 4)
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute(cwd=str(EXAMPLES))
    outputs = [output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])]
    assert_learns("".join(outputs))


@pytest.mark.slow
def test_a_network_from_ones_own_folder(tmp_path):
    """The page's module and its command, word for word but for what makes it shorter."""
    ((name, text),) = re.findall(r"`(my_nets\.py)`:\n\n```python\n(.*?)```", PAGE, re.S)
    (tmp_path / name).write_text(text)
    commands = re.findall(r"^python launch\.py (arch\._target_=my_nets\S+ .*)$", PAGE, re.M)
    training, listing = ([word.strip("'") for word in command.split()] for command in commands)
    status, out = run([*LAUNCH, *listing], tmp_path)
    assert status == 0 and all(f" {path} " in f" {out} ".replace("\n", " ") for path in ("conv1", "conv2", "norm")), out
    status, out = run([*LAUNCH, *training, *TINY, "num_clients=1"], tmp_path)
    assert status == 0, out
    assert "splitlearn MyNet cut after" in out.replace("\n", " ")
    (folder,) = job_folders(tmp_path)
    assert summary(folder)["map_shape"] == [24, 16, 16]
