"""metrics.jsonl: a line of JSON for each thing that is measured, which a run that goes on continues where it was."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

from splitlearn.errors import UserError


class Lines:
    """
    Args:
        path: of the file.
        num_bytes: to go on after; None to start anew. Nothing is changed until `open`.

    Raises:
        UserError: the file has not got so many.
    """

    def __init__(self, path: Path, num_bytes: int | None):
        self.path, self.num_bytes, self._file = path, num_bytes, None
        found, expected = path.stat().st_size if path.exists() else 0, num_bytes or 0
        if found < expected:
            missing = f"{path} has {found:,} of the {expected:,} bytes that it had at the checkpoint"
            raise UserError(f"{missing}: put it back from a copy, or start over with resume=never")

    def open(self) -> Lines:
        self._file = open(self.path, "w" if self.num_bytes is None else "a", buffering=1)  # noqa: SIM115
        if self.num_bytes is not None:
            self._file.truncate(self.num_bytes)  # what came later is measured again
        return self

    def write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")

    def synced(self) -> int:
        """Bytes so far, which are on the disk then, even if the power fails."""
        os.fsync(self._file.fileno())
        about = os.fstat(self._file.fileno())
        if not about.st_nlink:
            raise FileNotFoundError(errno.ENOENT, f"{self.path.name} is gone")
        return about.st_size

    def close(self) -> None:
        if self._file:
            self._file.close()
