import itertools

import torch

from splitlearn import seeds


def test_derived_seeds_differ_by_purpose():
    purposes = [(), ("uplink",), ("downlink",), ("uplink", 0), ("uplink", 1), ("uplink", 1, 2), ("uplink", 12), ("1",)]
    derived = {seeds.derive(seed, *purpose) for seed, purpose in itertools.product((0, 1), purposes)}
    assert len(derived) == 2 * len(purposes)
    assert all(0 <= seed < 2**63 for seed in derived)


def test_derived_seeds_are_the_same_everywhere():
    assert seeds.derive(0, "uplink", 1) == 867657509820122943


def test_generators_repeat_and_differ_by_purpose():
    draws = [torch.rand(4, generator=seeds.generator(0, *purpose)) for purpose in (("a",), ("a",), ("b",))]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_generators_leave_the_global_one_alone():
    before = torch.get_rng_state()
    torch.rand(4, generator=seeds.generator(0, "a"))
    assert torch.equal(torch.get_rng_state(), before)
