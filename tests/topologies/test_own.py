"""Topologies of one's own: what they keep goes on with a run, and what they lack is told of."""

import pytest
import torch
from runs import metrics
from simulation import compose
from test_resume import OFTEN, SMALL, as_after, assert_same

from splitlearn import checks, local
from splitlearn.errors import UserError
from splitlearn.topologies import topology_from
from splitlearn.topologies.topology import Topology

OWN = ["~topology.average", "~topology.weighting", "partition=dirichlet", "epochs=3"]


class Idle(Topology):
    def __init__(self, name):
        self.name = name

    def train(self, server):
        pass

    def train_client(self, client):
        pass


def test_what_both_ends_keep_is_there_when_a_run_goes_on(tmp_path):
    cfg = compose(*SMALL, *OFTEN, *OWN, "topology._target_=own_topologies.Alternating")
    local.run(cfg, tmp_path / "whole")
    per_epoch = len(metrics(tmp_path / "whole", "step")) // 3
    for last in (2, per_epoch, per_epoch + 3):
        part = as_after(last, tmp_path / "whole", tmp_path / f"from{last}")
        local.run(cfg, part)
        assert_same(part, tmp_path / "whole")


@pytest.mark.parametrize(
    "kept",
    [None, [1], {1: 2}, {"a": len}, {"a": torch.zeros(2, requires_grad=True)}, {"a": torch.zeros(2, device="meta")}],
    ids=str,
)
def test_what_cannot_be_sent_is_not_kept(kept, monkeypatch):
    cfg = compose(*OWN, "topology._target_=own_topologies.Alternating")
    topology = topology_from(cfg)
    assert topology.state()["kept"] == {"epochs": 0, "rates": torch.zeros(1)}
    monkeypatch.setattr(topology, "kept", lambda: kept)
    with pytest.raises(UserError, match=r"^topology own_topologies\.Alternating: kept\(\) must be a dict of plain"):
        topology.state()


def test_methods_that_are_not_there_are_one_sentence():
    cfg = compose(*OWN, f"topology._target_={__name__}.Idle")
    with pytest.raises(UserError, match=rf"^topology\._target_={__name__}\.Idle has to have end_epoch, num_steps too"):
        checks.check(cfg)
