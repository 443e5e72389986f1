"""What a step's line says of the payloads of a channel, and a word of warning where what they hold has grown."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from splitlearn.exchange.channel import ChannelSpec, Transfer

GREW = 128.0  # times its size at the start, which no normal training reaches


def of_payloads(spec: ChannelSpec, transfers: list[Transfer]) -> dict[str, float]:
    """Bytes of a channel's payloads in a step, and, where they were measured, mean error and root mean square."""
    line: dict[str, float] = {f"{spec.key}_bytes": sum(one.num_bytes for one in transfers)}
    for name in ("error", "rms"):
        if found := [value for one in transfers if (value := getattr(one, name)) is not None]:
            line[f"{spec.key}_{name}"] = fmean(found)
    return line


class Growth:
    """Watches the size of what crosses, and speaks up once for each channel where compression has made it grow.

    Args:
        specs: the channels.
        backward: the config key.
    """

    def __init__(self, specs: tuple[ChannelSpec, ...], backward: str):
        self.specs = [spec for spec in specs if spec.back and backward != "tangent"]
        self.keys = {spec.name: spec.key for spec in specs}

    def note(self, line: dict[str, Any], at_start: dict[str, float]) -> str | None:
        """What to tell the user after a step with this line; `at_start` keeps the first sizes for the run."""
        for spec in self.specs:
            rms = line.get(f"{spec.key}_rms")
            if not rms or not any(line.get(f"{one}_error") for one in (spec.key, self.keys[spec.back])):
                continue
            if rms > GREW * at_start.setdefault(spec.key, rms):
                self.specs.remove(spec)
                return (
                    f"the {spec.title} grow: rms {at_start[spec.key]:.2g} at the start, {rms:.2g} in step"
                    f" {line['step']}. What compression adds to their gradient lengthens them, until training stalls:"
                    " use backward=tangent, or more bits for the gradient (docs/language.md)"
                )
        return None
