"""Joins both segments of a run into the weights of the uncut network.

    python scripts/export.py outputs/2026-01-31/12-00-00 model.pt
    python scripts/export.py outputs/2026-01-31/12-00-00 model.safetensors

The result is a plain state_dict, {name: tensor}, that loads into the network as torchvision builds it (for vgg16 and
vgg19, and resnet18 and resnet34 on small images, as splitlearn.tasks builds it); with bottleneck=… into what
splitlearn.with_bottleneck makes of it. A run that has not finished gives its
last checkpoint, and --best the weights of the best evaluation, which checkpoint.best=true keeps.
"""

import argparse
import os
import sys
from pathlib import Path

import tables  # noqa: F401  finds splitlearn
import torch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("file", type=Path, help="to write: .pt, or .safetensors")
    parser.add_argument("--client", type=int, default=0, help="whose segment, where each client has its own")
    parser.add_argument("--best", action="store_true", help="the weights of the best evaluation (checkpoint.best=true)")
    arguments = parser.parse_args()

    sys.path.append(os.getcwd())  # where a user's own data set or network is, as in launch.py
    from splitlearn import saved
    from splitlearn.errors import UserError

    try:
        run = saved.load(arguments.run, arguments.client, arguments.best)
    except UserError as error:
        sys.exit(str(error))
    state = {name: tensor.contiguous() for name, tensor in run.model().state_dict().items()}
    if arguments.file.suffix == ".safetensors":
        try:
            from safetensors.torch import save_file
        except ImportError:
            sys.exit("a .safetensors file needs the package safetensors: pip install safetensors, or write a .pt file")
        save_file(state, arguments.file, metadata={"format": "pt"})
    else:
        torch.save(state, arguments.file)
    size = sum(tensor.nbytes for tensor in state.values())
    print(f"{arguments.file}: {run.cfg.arch.name} after step {run.step}, {len(state)} tensors, {size:,} bytes")
    for cut in run.network().cuts:
        if cut.channels:
            print(
                f'with a bottleneck, so that it loads into splitlearn.with_bottleneck(model, "{cut.path}",'
                f" {cut.channels[0]}, example)"
            )


if __name__ == "__main__":
    main()
