"""The data set of docs/data.md trains and is evaluated, from the folder that a user starts in."""

import re
import sys

import pytest
from runs import LAUNCH, ROOT, run, summary

from splitlearn.tasks.partition import OF_USERS

EXAMPLE = re.compile(r"`my_data\.py`:\n\n```python\n(.*?)```", re.S)


@pytest.mark.slow
def test_a_data_set_of_ones_own_trains(tmp_path):
    (text,) = EXAMPLE.findall((ROOT / "docs" / "data.md").read_text())
    (tmp_path / "my_data.py").write_text(text)
    options = ["data=custom", "data._target_=my_data.Stripes", "+data.size=64", "num_clients=2"]
    options += ["epochs=2", "batch_size=8", "log.tensorboard=false", "hydra.run.dir=run"]
    status, out = run([*LAUNCH, *options], tmp_path, PYTHONPATH="")
    assert status == 0, out
    assert "data: 2 classes (across, along), images of 32×32; 64 samples to train on, 64 to test on" in out
    assert "over 64 test samples, 2 clients after 2 epochs" in out
    found = summary(tmp_path / "run")
    assert found["classes"] == ["across", "along"] and found["test_top1"] > 0.9
    status, out = run([sys.executable, str(ROOT / "scripts" / "evaluate.py"), "run"], tmp_path, PYTHONPATH="")
    assert status == 0 and "64 test samples of Stripes" in out and f"{found['test_top1']:.2%}" in out, out


def test_all_partitions_are_on_the_page_and_all_that_auto_knows_in_its_comment():
    page, folder = (ROOT / "docs" / "data.md").read_text(), ROOT / "conf" / "partition"
    rows = set(re.findall(r"^\| `(\w+)`(?:, the default)? \| .+ \| .*\|$", page.partition("| `partition=` |")[2], re.M))
    assert rows >= {path.stem for path in folder.glob("*.yaml")}
    words = set(re.findall(r"\w+", (folder / "auto.yaml").read_text()))
    assert words >= {*OF_USERS, "_target_"}
