"""Attacks on what the server sees of a run: each one file, run offline from the run's folder by scripts/attack.py."""
