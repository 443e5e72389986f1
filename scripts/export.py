"""Joins both segments of a run into the weights of the uncut network.

    python scripts/export.py outputs/2026-01-31/12-00-00 model.pt
    python scripts/export.py outputs/2026-01-31/12-00-00 model.safetensors
    python scripts/export.py outputs/2026-01-31/12-00-00 folder

The result is a plain state_dict, {name: tensor}, that loads into the network as torchvision builds it (for vgg16 and
vgg19, and resnet18 and resnet34 on small images, as splitlearn.tasks builds it); with bottleneck=… into what
splitlearn.with_bottleneck makes of it. A folder is for what transformers and peft read: with arch=hf the model, as
save_pretrained writes it; with lora.rank=… the adapters alone, unless --merge adds them to the weights.

A run that has not finished gives its last checkpoint, and --best the weights of the best evaluation, which
checkpoint.best=true keeps.
"""

import argparse
import sys
from pathlib import Path

import torch
from script import start

FILES = (".pt", ".pth", ".bin", ".safetensors")  # where there may be a folder, all else is one, as "llama3.2-tuned"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("file", type=Path, help="to write: .pt, .pth, .bin, .safetensors, or a folder")
    parser.add_argument(
        "--merge", action="store_true", help="add the adapters of lora.rank=… to the weights beside them"
    )
    parser.add_argument("--client", type=int, default=0, help="whose segment, where each client has its own")
    parser.add_argument("--best", action="store_true", help="the weights of the best evaluation (checkpoint.best=true)")
    arguments = parser.parse_args()

    from splitlearn import saved
    from splitlearn.errors import UserError
    from splitlearn.segments import adapters
    from splitlearn.tasks import task_from
    from splitlearn.tasks.language import hf

    run = saved.load(arguments.run, arguments.client, arguments.best)
    model, arch = run.model(), run.cfg.arch
    adapted = adapters.has_adapters(model)
    if arguments.merge:
        if not adapted:
            raise UserError(f"{arguments.run} has no adapters to merge: it was trained without lora.rank")
        adapters.merge(model)
        adapted = False
    fits_folder = adapted or arch.name == "hf"
    is_folder = arguments.file.suffix not in FILES if fits_folder else not arguments.file.suffix
    if is_folder and not fits_folder:
        raise UserError(f"{arguments.file} is a folder, which is for arch=hf or adapters: name a .pt file")
    if adapted and not is_folder:
        sys.exit(f"the run has adapters (lora.rank={run.cfg.lora.rank}): name a folder for them, or merge with --merge")
    arguments.file.parent.mkdir(parents=True, exist_ok=True)
    # A tied parameter is there by each of its names, which .safetensors wants to be tensors of their own.
    state = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    if adapted:
        state = adapters.save(model, run.cfg.lora, arch.get("model"), arguments.file)
    elif is_folder:
        hf.save(model, arguments.file)
    else:
        write(state, arguments.file)
    size = sum(tensor.nbytes for tensor in state.values())
    name, _ = task_from(run.cfg).headline(run.cfg)
    print(f"{arguments.file}: {name} after step {run.step}, {len(state)} tensors, {size:,} bytes")
    for cut in run.network().cuts:
        if cut.channels:
            print(
                f'with a bottleneck, so that it loads into splitlearn.with_bottleneck(model, "{cut.path}",'
                f" {cut.channels[0]}, example)"
            )


def write(state: dict[str, torch.Tensor], path: Path) -> None:
    """Writes a state_dict as a file's name says; ends with a sentence where it cannot be written there."""
    refusals: tuple[type[Exception], ...] = (OSError,)
    if path.suffix == ".safetensors":
        try:
            from safetensors import SafetensorError
            from safetensors.torch import save_file
        except ImportError:
            sys.exit("a .safetensors file needs the package safetensors: pip install safetensors, or write a .pt file")
        refusals += (SafetensorError,)
    try:
        with path.open("wb") as file:  # by itself, as what torch and safetensors say of a place differs
            if path.suffix == ".safetensors":
                save_file(state, path, metadata={"format": "pt"})
            else:
                torch.save(state, file)
    except refusals as error:
        why = getattr(error, "strerror", None) or error
        sys.exit(f"{path} cannot be written ({why}): make room there, or name another file")


if __name__ == "__main__":
    start(main)
