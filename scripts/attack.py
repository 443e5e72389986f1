"""Attacks what the server of a run saw: what can be made of it, beside a guess that sees nothing.

    python scripts/attack.py outputs/mine attack=inversion
    python scripts/attack.py outputs/mine attack=inversion attack.steps=3000 --seeds 3
    python scripts/attack.py multirun/privacy attack=labels
    python scripts/attack.py outputs/mine --config-dir mine/conf attack=probe

The run has to have kept it: observe.batches=20, and observe.inputs=true for the figures. Needs `pip install -e
'.[privacy]'`. Writes the figures into <run>/attacks/<attack>.json, and reconstructed images beside their originals
into <attack>.png. Of a sweep, all runs that have kept something are attacked, but those that have been before; what
cannot be is told.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import OmegaConf
from script import start
from tables import markdown

from splitlearn.config import check_is, made_from
from splitlearn.errors import UserError

if TYPE_CHECKING:
    from splitlearn.privacy.attacks.attack import Attack

SHOWN = 12  # images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of a run, or of a sweep")
    parser.add_argument("--epoch", type=int, help="of what was kept; default: the last")
    parser.add_argument("--seeds", type=int, default=1, help="how often, each with other draws")
    parser.add_argument("--config-dir", type=Path, help="a folder with attack/<name>.yaml of your own")
    parser.add_argument("overrides", nargs="+", help="attack=<name>, and options of it")
    arguments = parser.parse_intermixed_args()
    if arguments.seeds < 1:
        parser.error(f"--seeds {arguments.seeds} must be at least 1")

    from splitlearn.compose import compose_group
    from splitlearn.privacy.attacks.attack import Attack

    try:
        name, cfg = compose_group("attack", arguments.overrides, arguments.config_dir)
        attack, chosen = made_from(cfg, "attack"), OmegaConf.to_container(cfg.attack, resolve=True)
        check_is(attack, Attack, cfg, "attack")
        options = {"seeds": arguments.seeds, "asked_epoch": arguments.epoch, "options": chosen}
        num_shown = 0
        for folder in runs_of(arguments.folder):
            if folder != arguments.folder:
                print(f"\n{folder.relative_to(arguments.folder)}", flush=True)
            path = folder / "attacks" / f"{name}.json"
            about = json.loads(path.read_text()) if folder != arguments.folder and path.exists() else {}
            if {key: about.get(key) for key in options} != options:
                try:
                    about = options | attacked(folder, name, attack, arguments.epoch, arguments.seeds)
                except UserError as error:
                    if folder == arguments.folder:
                        raise
                    print(f"not attacked: {error}", file=sys.stderr)
                    continue
                path.write_text(json.dumps(about, indent=2) + "\n")
            show(name, about, path)
            num_shown += 1
        if not num_shown:
            sys.exit(f"no run in {arguments.folder} could be attacked")
    except ModuleNotFoundError as error:
        install = "-e '.[privacy]'" if str(error.name).startswith("torchmetrics") else error.name
        sys.exit(f"attack={name} needs {error.name}: pip install {install}")


def runs_of(folder: Path) -> Iterator[Path]:
    """The run in a folder, or all runs below it that have kept what their server saw."""
    from splitlearn.privacy.observing import FOLDER

    below = sorted(path.parent for path in folder.rglob(FOLDER) if path.is_dir())
    yield from [folder] if (folder / "config.yaml").exists() else below or [folder]


def attacked(folder: Path, name: str, attack: "Attack", epoch: int | None, seeds: int) -> dict[str, Any]:
    """What an attack on a run comes to, of each figure the mean and the spread over the seeds, and the guess.

    Raises:
        UserError: the run has not kept what it needs.
    """
    from splitlearn.privacy.attacks.attack import Scene

    scene = Scene.load(folder, epoch)
    found = [attack.run(scene, seed) for seed in range(seeds)]
    figures = {}
    for figure in found[0].figures:
        values, guesses = ([getattr(one, which)[figure] for one in found] for which in ("figures", "guess"))
        figures[figure] = {"mean": fmean(values), "spread": pstdev(values), "guess": fmean(guesses)}
    (folder / "attacks").mkdir(exist_ok=True)
    if found[0].pairs:
        draw(found[0].pairs, folder / "attacks" / f"{name}.png")
    return {"epoch": scene.epoch, "batches": found[0].num_batches or len(scene.seen), "figures": figures}


def show(name: str, about: dict[str, Any], path: Path) -> None:
    rows = []
    for figure, found in about["figures"].items():
        spread = f" ± {found['spread']:.3f}" if about["seeds"] > 1 else ""
        rows.append([figure, f"{found['mean']:.3f}{spread}", f"{found['guess']:.3f}"])
    print(f"{name} on what is kept of epoch {about['epoch']}, {about['batches']} batches\n")
    print(markdown(["", "attack", "guess"], rows))
    if (picture := path.with_suffix(".png")).exists():
        print(f"\noriginals above, reconstructions below: {picture}")


def draw(pairs: tuple[torch.Tensor, torch.Tensor], path: Path) -> None:
    """Originals in a row, and below each what was made of it."""
    from torchvision.utils import save_image

    save_image(torch.cat([part[:SHOWN] for part in pairs]), path, nrow=min(SHOWN, len(pairs[0])), padding=1)


if __name__ == "__main__":
    start(main)
