"""The run's whole state into a checkpoint, and out of it."""

from __future__ import annotations

from typing import Any, NoReturn

from splitlearn.checkpoints import Checkpoints
from splitlearn.config import differences, shared
from splitlearn.errors import Stopped, UserError
from splitlearn.roles.member import Member


class RunState:
    """When a server's run is saved, what is, and how it goes on.

    Args:
        server: whose run it is.
        checkpoints: where they are.
    """

    def __init__(self, server: Any, checkpoints: Checkpoints):
        self.server, self.cfg, self.checkpoints = server, server.cfg, checkpoints
        self._found: dict[str, Any] | None = None  # until the network is built

    def find(self) -> None:
        """Looks for the state of the run in this folder, to go on from, if it is wanted; opens the recorder."""
        server = self.server
        checkpoint = None if self.cfg.resume == "never" else self.checkpoints.latest()
        if checkpoint is None:
            self.checkpoints.clear()
        elif difference := differences(checkpoint["config"], shared(self.cfg), "then", "now"):
            raise UserError(
                f"{server.recorder.folder} holds a run that was configured differently: {difference}; go on as it was,"
                " choose another folder with hydra.run.dir, or start over in it with resume=never"
            )
        server.recorder.open(checkpoint and checkpoint["recorder"])
        self._found = checkpoint
        if checkpoint:
            for name, value in checkpoint["progress"].items():
                setattr(server.progress, name, value)
            server.roster.members.update(
                {client: Member(**about) for client, about in checkpoint["clients"]["members"].items()}
            )
            if server.roster.is_open:  # which may have a quorum without a client that has data
                server.roster.about = checkpoint["about"]
                server.build(checkpoint["about"])

    @property
    def goes_on(self) -> bool:
        """Whether there is something to restore."""
        return self._found is not None

    def restore(self) -> None:
        """Takes over what was found, once the network is built."""
        checkpoint, self._found = self._found, None
        if checkpoint is None:
            return
        server = self.server
        server.trainable.load(checkpoint["server"])
        server.trainable.skip_epochs(server.progress.epoch - 1)
        server.client_states = checkpoint["clients"]["states"]
        server.stopwatch.seconds.update(checkpoint["seconds"])
        server.recorder.resumed(server.progress.epoch)

    def save(self) -> None:
        """Writes a checkpoint of the run as it is now."""
        server = self.server
        members = {client: member.saved() for client, member in server.roster.members.items()}
        self.checkpoints.save(
            server.progress.step,
            {
                "config": shared(self.cfg),
                "progress": dict(vars(server.progress)),
                "about": server.agreement.about,
                "server": server.trainable.state(),
                "clients": {"states": list(server.client_states), "members": members},
                "recorder": server.recorder.state(),
                "seconds": dict(server.stopwatch.seconds),
            },
        )

    def wait(self) -> None:
        """Until the last checkpoint is on the disk."""
        self.checkpoints.wait()

    def saves_epoch(self, epoch: int) -> bool:
        every = self.cfg.checkpoint
        if epoch == self.cfg.epochs:
            return bool(every.every_epochs or every.every_steps)
        return bool(every.every_epochs) and epoch % every.every_epochs == 0

    def directive(self) -> str | None:
        """What is asked of the clients after the current step: their state, to "save" it or before a "stop"."""
        if self.server.stop.asked_by is not None:
            return "stop"
        every = self.cfg.checkpoint.every_steps
        return "save" if every and self.server.progress.step % every == 0 else None

    def end_early(self) -> NoReturn:
        """
        Raises:
            Stopped: the run is saved, and ends.
        """
        self.wait()
        raise Stopped(
            f"stopped in epoch {self.server.progress.epoch} after step {self.server.progress.step}, with a checkpoint:"
            f" go on with resume={self.server.recorder.folder}",
            self.server.stop.asked_by,
        )
