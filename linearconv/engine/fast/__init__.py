"""Faster ways to compute the same numbers; the training loop uses them only through `runtime`."""
