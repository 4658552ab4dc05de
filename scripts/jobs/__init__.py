"""The queue of runs behind `scripts/reproduce.py`, on this machine or on a Slurm cluster."""
