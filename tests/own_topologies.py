"""Topologies of one's own, in a module that any rank can import."""

from dataclasses import replace

import torch

from splitlearn.topologies.parallel import Parallel


class Alternating(Parallel):
    """What comes next goes by what an end has counted and added up itself, of which no other part of a run knows.

    Every second mean weighs clients by their samples, and a client's steps are the smaller the more rates it has had.
    """

    def __init__(self, name: str = "alternating"):
        super().__init__(name)
        self.restore({})

    def kept(self):
        return {"epochs": self.epochs, "rates": self.rates}

    def restore(self, kept):
        self.epochs, self.rates = kept.get("epochs", 0), kept.get("rates", torch.zeros(1))

    def end_epoch(self, server):
        self.epochs += 1
        self.weighting = "samples" if self.epochs % 2 else "uniform"
        super().end_epoch(server)

    def end_batch(self, client, share, reply):
        self.rates = self.rates + reply.rates["lr"]
        smaller = reply.rates | {"lr": reply.rates["lr"] / (1 + self.rates.item())}
        return super().end_batch(client, share, replace(reply, rates=smaller))
