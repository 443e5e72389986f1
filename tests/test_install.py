"""The package as pip installs it, in an environment of its own that borrows what it depends on."""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import venv

import pytest
from runs import ROOT, TINY

SCRIPT = """
import splitlearn
from splitlearn.compose import compose
print(splitlearn.compress.__name__, compose("cut=deep").cut, splitlearn.__file__)
"""


@pytest.fixture(params=["editable", "wheel"])
def installed(request, tmp_path):
    """Folder with a clone in it and a script beside it, and the environment's bin/."""
    clone, environment = tmp_path / "splitlearn", tmp_path / "environment"
    ignored = shutil.ignore_patterns(".*", "tests", "docs", "build", "*.egg-info", "__pycache__", "outputs", "multirun")
    shutil.copytree(ROOT, clone, ignore=ignored)
    venv.create(environment, with_pip=True)
    library = sysconfig.get_path("purelib", vars={"base": str(environment), "platbase": str(environment)})
    with open(os.path.join(library, "zz_borrowed.pth"), "w") as file:
        file.write(sysconfig.get_path("purelib"))
    how = ["-e", str(clone)] if request.param == "editable" else [str(clone)]
    pip = [environment / "bin" / "pip", "install", "-q", "--no-deps", *how]
    if importlib.util.find_spec("setuptools") and importlib.util.find_spec("wheel"):
        pip.append("--no-build-isolation")  # else pip fetches them
    subprocess.run(pip, check=True, env=clean(), cwd=tmp_path)
    (tmp_path / "script.py").write_text(SCRIPT)
    return tmp_path, environment / "bin", request.param


def clean() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="names of folders")
def test_it_is_found_from_the_folder_above_the_clone_and_starts_runs(installed):
    folder, bin_, way = installed

    def output(*command) -> str:
        return subprocess.run(command, cwd=folder, env=clean(), capture_output=True, text=True, check=True).stdout

    name, cut, file = output(bin_ / "python", "script.py").split()
    assert (name, cut) == ("compress", "deep")
    assert file.startswith(str(folder / "splitlearn" if way == "editable" else bin_.parent))
    assert "test accuracy" in output(bin_ / "splitlearn", "num_clients=1", *TINY)
    if way == "wheel":
        assert "test accuracy" in output(bin_ / "python", "-m", "splitlearn", "num_clients=1", *TINY)
