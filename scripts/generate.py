"""Writes text with the language model that a run has trained: both segments together, uncut.

    python scripts/generate.py outputs/2026-01-31/12-00-00 "ROMEO:"
    python scripts/generate.py outputs/2026-01-31/12-00-00 "ROMEO:" --tokens 500 --temperature 0.5 --seed 1

A run that has not finished gives its last checkpoint, and --best the weights of the best evaluation, which
checkpoint.best=true keeps.
"""

import argparse
import math
from pathlib import Path

from script import start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("prompt", nargs="?", default="\n", help="what the text begins with; a new line")
    parser.add_argument("--tokens", type=int, default=300, help="how many to write")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest token each time")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--client", type=int, default=0, help="whose segment, where each client has its own")
    parser.add_argument("--best", action="store_true", help="the weights of the best evaluation (checkpoint.best=true)")
    arguments = parser.parse_intermixed_args()
    if arguments.tokens < 1:
        parser.error(f"--tokens {arguments.tokens} must be at least 1")
    if not 0 <= arguments.temperature < math.inf:
        parser.error(f"--temperature {arguments.temperature} must be a number from 0")

    from splitlearn import saved
    from splitlearn.errors import UserError
    from splitlearn.tasks import CausalLM, task_from

    run = saved.load(arguments.run, arguments.client, arguments.best)
    task = task_from(run.cfg)
    if not isinstance(task, CausalLM):
        raise UserError(f"{arguments.run} holds no language model: task=causal_lm trains one")
    how = arguments.tokens, arguments.temperature, arguments.seed
    print(arguments.prompt + task.written(run.cfg, run.model(), arguments.prompt, *how))


if __name__ == "__main__":
    start(main)
