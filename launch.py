"""Starts a run, or a sweep of runs: under torchrun as one of its ranks, else as the process that starts all ranks.

torchrun --master-port 29500 --nproc-per-node 3 launch.py compressor.ratio=0.95
python launch.py num_clients=4 cut=deep
python launch.py -m compressor=none,ms cut=shallow,deep
python launch.py resume=outputs/2026-01-31/12-00-00

What it does is in splitlearn/launch.py, which an installed package starts as `splitlearn` or `python -m splitlearn`.
"""

from splitlearn.__main__ import main

if __name__ == "__main__":
    main()
