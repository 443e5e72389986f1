"""docs/configuration.md is what conf/ says."""

import sys

from runs import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
import config_options
import document_config

AGAIN = "run python scripts/document_config.py"


def test_the_page_is_up_to_date():
    assert document_config.PAGE.read_text() == document_config.page(), AGAIN


def test_every_key_has_a_comment():
    assert config_options.undocumented() == [], "write a comment on their lines in conf/, or into the docstring's Args"


def test_every_group_and_key_is_there():
    page = document_config.page()
    for path in (ROOT / "conf").rglob("*/*.yaml"):
        if "hydra" not in path.parts:
            assert f"## `{path.parent.relative_to(ROOT / 'conf')}`" in page and f"| `{path.stem}`" in page
    for key in ("compressor.budget_bits", "optimizer.lr", "rpc.timeout_s"):
        assert f"| `{key}` |" in page


def test_keys_are_called_as_they_are_set_and_have_a_row_for_each_thing_that_they_are():
    rows = [line for line in document_config.page().splitlines() if line.startswith("| `")]
    assert sum(row.startswith("| `defence.noise.scale` |") for row in rows) == 1
    assert not any(row.startswith("| `defence.scale` |") for row in rows)
    assert sum(row.startswith("| `cut_back` | u_shaped: `last` |") for row in rows) == 1
    decay = [row for row in rows if row.startswith("| `optimizer.weight_decay` |")]
    assert len(decay) == 2 and "adamw" not in decay[0] and "adamw: `0.1`" in decay[1]


def test_comments_over_several_lines_and_nested_keys(tmp_path):
    path = tmp_path / "option.yaml"
    path.write_text("# An option.\nname: option\na:  # of a\n  b: 'x # y'  # one\n              # two\n  c: [1, 2]\n")
    option = config_options.option_in(path)
    assert option.about == "An option." and option.keys["a"] == config_options.Key("", "of a")
    assert option.keys["a.b"] == config_options.Key("'x # y'", "one two")
    assert option.keys["a.c"] == config_options.Key("[1, 2]", "")
