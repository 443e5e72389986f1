import gc
import itertools
import threading

import torch

from splitlearn import forking, seeds


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


class Cycle:
    """Garbage that only the collector frees, and with it a tensor, which hands over Python's lock."""

    def __init__(self):
        self.me, self.tensor = self, torch.zeros(4)


def draw_in_threads(seconds):
    gc.set_threshold(50)
    over = threading.Event()

    def draw(seed):
        while not over.is_set():
            Cycle()
            with seeds.torch_drawing_from(seed):
                found.append((seed, torch.rand(()).item()))
            seeds.start_from(seed)

    found = []
    threads = [threading.Thread(target=draw, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    over.wait(seconds)
    over.set()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 3, "a thread has drawn from another one's seed"


def test_threads_draw_each_from_its_seed_and_none_waits_for_ever():
    process = forking.start().Process(target=draw_in_threads, args=(1,))  # threads that wait so could not be ended here
    process.start()
    process.join(30)
    process.kill()
    assert process.exitcode == 0
