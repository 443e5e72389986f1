"""A training loop of one's own, on the library's parts: a client and a server, two processes, and bits between them."""

import torch
import torch.multiprocessing as mp
from sklearn.datasets import load_digits
from torch import nn

import splitlearn
from splitlearn.compressors import MaskSparsifier

torch.manual_seed(0)
torch.set_num_threads(1)
model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
segments = splitlearn.split(model, "1", torch.zeros(2, 64))
optimizers = [torch.optim.Adam(segment.parameters(), lr=1e-3) for segment in segments]
uplink = MaskSparsifier(ratio=0.9, bits=2)


def server(pipe):
    while message := pipe.recv():
        wire, labels = message
        received = splitlearn.receive(wire, uplink)
        loss = nn.functional.cross_entropy(segments[1](received.tensor), labels)
        optimizers[1].zero_grad()
        loss.backward()
        optimizers[1].step()
        pipe.send((loss.item(), received.gradient_wire))


def client(pipe, num_epochs=10):
    images, labels = (torch.tensor(array) for array in load_digits(return_X_y=True))
    for epoch in range(1, num_epochs + 1):
        total, num_bytes = 0, 0
        for batch in torch.randperm(len(images)).split(32):
            sent = splitlearn.send(segments[0](images[batch].float() / 16), uplink)
            pipe.send((sent.wire, labels[batch]))
            loss, gradient_wire = pipe.recv()
            optimizers[0].zero_grad()
            sent.backward(gradient_wire)
            optimizers[0].step()
            total, num_bytes = total + loss * len(batch), num_bytes + sent.wire.nbytes
        mean, raw_bytes = total / len(images), len(images) * 128 * 4
        print(f"epoch {epoch}: loss {mean:.3f}, {num_bytes:,} bytes up instead of {raw_bytes:,}")
    pipe.send(None)


if __name__ == "__main__":
    here, there = mp.Pipe()
    mp.get_context("fork").Process(target=server, args=(there,), daemon=True).start()
    client(here)
