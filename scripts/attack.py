"""Attacks what the server of a run saw: what can be made of it, beside a guess that sees nothing.

    python scripts/attack.py outputs/mine attack=inversion
    python scripts/attack.py outputs/mine attack=inversion attack.steps=3000 --seeds 3
    python scripts/attack.py outputs/mine attack=labels

The run has to have kept it: observe.batches=20, and observe.inputs=true for the figures. Needs `pip install -e
'.[privacy]'`. Writes the figures into <run>/attacks/<attack>.json, and reconstructed images beside their originals
into <attack>.png.
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import fmean, pstdev

import torch
from hydra.utils import instantiate
from tables import markdown

SHOWN = 12  # images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("--epoch", type=int, help="of what was kept; default: the last")
    parser.add_argument("--seeds", type=int, default=1, help="how often, each with other draws")
    parser.add_argument("overrides", nargs="+", help="attack=<name>, and options of it")
    arguments = parser.parse_args()

    from splitlearn.compose import compose_group
    from splitlearn.errors import UserError
    from splitlearn.privacy.attacks.attack import Scene

    try:
        name, cfg = compose_group("attack", arguments.overrides)
        attack, scene = instantiate(cfg), Scene.load(arguments.run, arguments.epoch)
        found = [attack.run(scene, seed) for seed in range(arguments.seeds)]
    except UserError as error:
        sys.exit(str(error))
    except ModuleNotFoundError as error:
        sys.exit(f"attack={arguments.overrides[0].partition('=')[2]} needs {error.name}: pip install -e '.[privacy]'")
    rows, summary = [], {}
    for figure in found[0].figures:
        values, guesses = ([getattr(one, which)[figure] for one in found] for which in ("figures", "guess"))
        summary[figure] = {"mean": fmean(values), "spread": pstdev(values), "guess": fmean(guesses)}
        spread = f" ± {pstdev(values):.3f}" if len(values) > 1 else ""
        rows.append([figure, f"{fmean(values):.3f}{spread}", f"{fmean(guesses):.3f}"])
    folder = arguments.run / "attacks"
    folder.mkdir(exist_ok=True)
    about = {"epoch": scene.epoch, "batches": len(scene.seen), "seeds": arguments.seeds, "figures": summary}
    (folder / f"{name}.json").write_text(json.dumps(about, indent=2) + "\n")
    print(f"{name} on {len(scene.seen)} batches of epoch {scene.epoch}\n")
    print(markdown(["", "attack", "guess"], rows))
    if found[0].pairs:
        path = folder / f"{name}.png"
        draw(found[0].pairs, path)
        print(f"\noriginals above, reconstructions below: {path}")


def draw(pairs: tuple[torch.Tensor, torch.Tensor], path: Path) -> None:
    """Originals in a row, and below each what was made of it."""
    from torchvision.utils import save_image

    save_image(torch.cat([part[:SHOWN] for part in pairs]), path, nrow=min(SHOWN, len(pairs[0])), padding=1)


if __name__ == "__main__":
    main()
