"""The run's whole state into a checkpoint, and out of it."""

from __future__ import annotations

from typing import Any, NoReturn

from torch import Tensor

from splitlearn import saved
from splitlearn.checkpoints import Checkpoints
from splitlearn.config import evaluates, shared
from splitlearn.errors import Stopped, UserError, typed
from splitlearn.exchange import network
from splitlearn.exchange.network import Network
from splitlearn.roles import longer
from splitlearn.roles.fit import latest_notes
from splitlearn.roles.member import Member
from splitlearn.segments.trainable import state_of


class RunState:
    """When a server's run is saved, what is, and how it goes on.

    Args:
        server: whose run it is.
        checkpoints: where they are.
    """

    def __init__(self, server: Any, checkpoints: Checkpoints):
        self.server, self.cfg, self.checkpoints = server, server.cfg, checkpoints
        self._found: dict[str, Any] | None = None  # until the run has begun
        self._weights: dict[str, Tensor] | None = None  # to start from, likewise

    def find(self) -> None:
        """Looks for what to go on from, or to start from, if it is wanted. Nothing is changed yet.

        Raises:
            UserError: what is in the folder is not what this run could go on from.
        """
        server, folder = self.server, self.server.recorder.folder
        checkpoint = self._found = None if self.cfg.resume == "never" else self.checkpoints.latest()
        if checkpoint is None:
            if self.cfg.resume != "never" and saved.has_finished(folder):
                raise UserError(
                    f"{folder} holds a run that has finished, without a checkpoint to go on from: choose another folder"
                    " with hydra.run.dir, or start over in it with resume=never"
                )
            if self.cfg.resume != "never" and (folder / "metrics.jsonl").exists():
                server.recorder.display.note(
                    "the run in this folder has no checkpoint yet: it starts from its beginning"
                )
            if self.cfg.init_from is not None:
                self._weights = saved.weights(self.cfg.init_from)
            return
        longer.check(folder, checkpoint["config"], shared(self.cfg), checkpoint["progress"])
        server.progress.num_sending = checkpoint["progress"]["epoch"] - 1  # at most; an older run does not say
        for name, value in checkpoint["progress"].items():
            setattr(server.progress, name, value)
        server.roster.members.update(
            {client: Member(**about) for client, about in checkpoint["clients"]["members"].items()}
        )
        if server.roster.is_open:  # which may have a quorum without a client that has data
            server.roster.about = checkpoint["about"]
            server.build(checkpoint["about"])

    def initialise(self, built: Network) -> None:
        """Gives the network, as it was built, the weights that it is to start from."""
        if self._weights is not None:
            network.load(built, self._weights, f"init_from={self.cfg.init_from}")

    @property
    def goes_on(self) -> bool:
        """Whether there is something to restore."""
        return self._found is not None

    def restore(self) -> None:
        """Takes over what was found, once the network is built."""
        if self._found is None:
            return
        server, checkpoint = self.server, self._found
        server.trainable.load(checkpoint["server"])
        server.client_states = checkpoint["clients"]["states"]
        server.held.load(checkpoint["held"])
        server.codecs.load_latest(checkpoint.get("latest", {}))
        server.topology.load(checkpoint)
        server.stopwatch.seconds.update(checkpoint["seconds"])

    def begin(self) -> None:
        """All that could refuse this run has let it pass: from here on the folder is its own."""
        recorder, checkpoint = self.server.recorder, self._found
        recorder.open(checkpoint and checkpoint["recorder"])
        if checkpoint is None:
            self.checkpoints.clear()
            self.server.observer.start()
        else:
            recorder.resumed(self.server.progress.epoch, self.server.is_over)
        self._found = self._weights = None
        for note in latest_notes(self.server):
            recorder.display.note(note)

    def save(self) -> None:
        """Writes a checkpoint of the run as it is now."""
        server = self.server
        members = {client: member.saved() for client, member in server.roster.members.items()}
        self.checkpoints.save(
            server.progress.step,
            {
                "config": shared(self.cfg),
                "progress": server.progress.saved(),
                "about": server.agreement.about,
                "server": server.trainable.state(),
                "latest": server.codecs.latest_states(),
                "clients": {"states": list(server.client_states), "members": members},
                "held": server.held.state(),
                **server.topology.state(),
                "recorder": server.recorder.state(),
                "seconds": dict(server.stopwatch.seconds),
            },
            after=server.verdict.wait,
        )

    def wait(self) -> None:
        """Until the last checkpoint is on the disk."""
        self.checkpoints.wait()

    def weights(self) -> dict[str, Any]:
        """The weights that the run has now, by the file that they go to at its end."""
        states = self.server.own_states or self.server.client_states
        names = [f"client_segment_{client}.pt" for client in range(len(states))]
        found = dict(zip(names if len(states) > 1 else ["client_segment.pt"], states, strict=True))
        found = {name: state.get("segment", state) for name, state in found.items() if state is not None}  # who came
        return {**found, "server_segment.pt": state_of(self.server.trainable.segment)}

    def saves_epoch(self, epoch: int) -> bool:
        every = self.cfg.checkpoint
        if epoch == self.cfg.epochs or self.server.is_over:
            return bool(every.every_epochs or every.every_steps)
        return bool(every.every_epochs) and epoch % every.every_epochs == 0

    def keeps_own(self, epoch: int) -> bool:
        """Whether clients without an average hand in their state after an epoch, as it may be needed without them."""
        is_compared = self.server.verdict.compares and evaluates(self.cfg, epoch)
        return is_compared or self.cfg.membership.sample is not None

    def directive(self) -> str | None:
        """What is asked of the clients after the current step: their state, to "save" it or before a "stop".

        Nothing between two steps of the optimizers, so that gradients that wait for one need not be saved.
        """
        if not self.server.updates.is_due:
            return None
        if self.server.stop.asked_by is not None:
            return "stop"
        every = self.cfg.checkpoint.every_steps
        progress = self.server.progress
        is_due = every and progress.step // every > (progress.step - progress.since_update) // every
        return "save" if is_due else None

    def end_early(self) -> NoReturn:
        """
        Raises:
            Stopped: the run is saved, and ends.
        """
        self.wait()
        raise Stopped(
            f"stopped in epoch {self.server.progress.epoch} after step {self.server.progress.step}, with a checkpoint:"
            f" go on with {typed('resume', self.server.recorder.folder)}",
            self.server.stop.asked_by,
        )
