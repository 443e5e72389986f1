"""Evaluates a run's network on its test set: through its compressor, as in the run, and without compression.

    python scripts/evaluate.py outputs/2026-01-31/12-00-00
    python scripts/evaluate.py outputs/2026-01-31/12-00-00 data.root=/data/cifar10 compressor=ms_best

Overrides, as for launch.py, come after what the run was started with. A run that has not finished gives its last
checkpoint.
"""

import argparse
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from common import compose, markdown
from omegaconf import OmegaConf


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("--client", type=int, default=0, help="whose segment, where each client has its own")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()

    from splitlearn import config, data, saved
    from splitlearn.compressors import Identity
    from splitlearn.errors import UserError
    from splitlearn.server import num_correct
    from splitlearn.training import autocast, smash

    try:
        run = saved.load(arguments.run, arguments.client)
        cfg = run.cfg
        if arguments.overrides:
            before = OmegaConf.load(arguments.run / ".hydra" / "overrides.yaml")
            cfg = compose(*before, *arguments.overrides)
        _, test, _ = data.build(cfg.data, cfg.seed)
        compressors = [config.compressor_from(cfg, "compressor").for_evaluation(), Identity()]
    except UserError as error:
        sys.exit(str(error))
    client, server = run.segments()
    totals = [torch.zeros(3) for _ in compressors]  # loss, top-1, top-5
    num_bytes = [0] * len(compressors)
    _, loader = data.loaders(test, test, 0, 1, cfg)
    for images, labels in loader:
        smashed = smash(client, images, cfg)
        for i, compressor in enumerate(compressors):
            payload = compressor.encode(smashed)
            with autocast(cfg, images.device):
                logits = server(compressor.decode(payload))
            loss = F.cross_entropy(logits.float(), labels, reduction="sum").item()
            totals[i] += torch.tensor([loss, num_correct(logits, labels, 1), num_correct(logits, labels, 5)])
            num_bytes[i] += payload.nbytes
    rows = []
    for compressor, total, nbytes in zip(compressors, totals, num_bytes, strict=True):
        loss, top1, top5 = (total / len(test)).tolist()
        rows.append([compressor.label, f"{top1:.2%}", f"{top5:.2%}", f"{loss:.4f}", f"{nbytes / len(test):,.0f}"])
    print(f"{cfg.arch.name} cut={cfg.cut} after step {run.step}, {len(test):,} test samples of {cfg.data.name}\n")
    print(markdown(["smashed data", "top-1", "top-5", "loss", "bytes a sample"], rows))


if __name__ == "__main__":
    main()
