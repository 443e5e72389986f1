"""Imports run one way, between rooms and between files."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest
from runs import ROOT

PACKAGE = ROOT / "splitlearn"
# Each room may import those below its own line.
FLOORS = [
    {"__main__"},
    {"launch"},
    {"sweeps"},
    {"jobs"},
    {"local"},
    {"preloaded"},
    {"worker"},
    {"checks"},
    {"roles"},
    {"privacy"},
    {"saved"},
    {"measure", "topologies"},
    {"exchange", "compose"},
    {"tasks", "transport"},
    {"segments", "rates"},
    {"config"},
    {"commandline"},
    {"started"},
    {"kinds"},
    {"compressors", "defences"},
    {"kernels"},
    {"forking"},
    {
        "batches",
        "checkpoints",
        "console",
        "folder",
        "hydras",
        "orphan",
        "private",
        "seeds",
        "stopping",
        "targets",
        "words",
    },
    {"errors"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
MODULES = {path: path.relative_to(ROOT).with_suffix("").parts for path in PACKAGE.rglob("*.py")}
NAMES = {".".join(parts).removesuffix(".__init__"): path for path, parts in MODULES.items()}


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def imports_of(path: Path) -> set[str]:
    """The project's modules that a file imports when it is loaded, and within functions."""
    found = set()
    tree = ast.parse(path.read_text())
    for_types = {id(child) for node in ast.walk(tree) if is_for_types(node) for child in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {full if (full := f"{node.module}.{name.name}") in NAMES else node.module for name in node.names}
    return {name for name in found if name in NAMES and name != "splitlearn"}


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


GRAPH = {name: imports_of(path) for name, path in NAMES.items()}


@pytest.mark.parametrize("name", sorted(set(GRAPH) - {"splitlearn"}))
def test_no_import_goes_up(name):
    own = room_of(name)
    for other in GRAPH[name]:
        room = room_of(other)
        if room != own:
            assert FLOOR[room] > FLOOR[own], f"{name} imports {other}"


def test_there_is_no_circle():
    state: dict[str, int] = defaultdict(int)  # 1: being visited, 2: done

    def visit(name: str, path: list[str]) -> None:
        assert state[name] != 1, " → ".join([*path, name])
        if state[name] == 0:
            state[name] = 1
            for other in sorted(GRAPH[name]):
                visit(other, [*path, name])
            state[name] = 2

    for name in GRAPH:
        visit(name, [])


def test_only_transport_knows_rpc_and_codecs_do_not_know_hydra():
    for name, path in NAMES.items():
        text = path.read_text()
        if room_of(name) != "transport":
            assert "import torch.distributed" not in text and "torch.distributed.rpc as" not in text, name
        if room_of(name) in ("compressors", "kernels"):
            assert "hydra" not in text, name


def test_files_are_short():
    assert {name: n for name, path in NAMES.items() if (n := len(path.read_text().splitlines())) > 250} == {}


def test_nothing_outside_tasks_speaks_of_images_or_classes():
    words = ("cross_entropy", "num_classes", "top1", "ImageFolder")
    found = {
        name: [word for word in words if word in path.read_text()]
        for name, path in NAMES.items()
        if room_of(name) != "tasks"
    }
    assert not {name: words for name, words in found.items() if words}
