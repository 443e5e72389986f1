"""What a client's own console shows of an epoch."""

import torch
from simulation import compose

from splitlearn.exchange.labels_up import Gradient, Smashed
from splitlearn.exchange.u_shaped import FeatureGradient, Payload
from splitlearn.measure.screen import Screen
from splitlearn.roles.waiting import Repeated
from splitlearn.tasks import task_from

WIRE = torch.zeros(100, dtype=torch.uint8)


def test_an_epoch_has_the_loss_of_its_samples_and_the_bytes_of_its_payloads(capfd):
    screen, task = Screen(), task_from(compose())
    for num_samples, loss in ((3, 1.0), (1, 5.0)):
        sent, answer = Smashed(WIRE, torch.zeros(num_samples, dtype=torch.uint8)), Gradient(loss, WIRE[:10])
        screen.crossed("up", sent)
        screen.crossed("down", answer)
        for part in (sent, answer):
            screen.trained(part, num_samples)
    screen.epoch(3, 12, task)
    screen.epoch(4, 12, task)
    first, second = capfd.readouterr().out.splitlines()
    assert first.startswith("epoch  3/12 loss 2.0000 up 200 B down 20 B ")
    assert second.startswith("epoch  4/12 no batch was finite up 0 B down 0 B ")


def test_a_client_that_keeps_its_labels_knows_its_metrics(capfd):
    screen, task = Screen("client 2"), task_from(compose())
    screen.trained(Payload(WIRE), 4)
    screen.trained(FeatureGradient(WIRE, 0.5, {"top1": 3.0}), 4)
    screen.epoch(1, 1, task)
    assert capfd.readouterr().out.startswith("client 2: epoch 1/1 loss 0.5000 train 75.00% up 0 B")


def test_beside_the_server_nothing_is_shown_and_text_is_shown_as_it_is(capfd):
    Screen(is_shown=False).tell("nothing")
    Screen().tell("[::1]:29500 [red]broke[/]")
    assert capfd.readouterr().out == "[::1]:29500 [red]broke[/]\n"


def test_a_wait_is_told_when_it_changes_and_not_too_often(monkeypatch):
    now, told = [100.0], []
    monkeypatch.setattr("splitlearn.roles.waiting.time.monotonic", lambda: now[0])
    waits = Repeated(told.append, first_s=1.0)
    for second, text in enumerate("aaabbbbbbbbbcd"):
        now[0] = 100.0 + second
        waits(text)
    assert told == ["a", "b", "c"]
