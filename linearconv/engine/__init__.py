"""Training: seeding, step, loop, checkpoints, records and provenance.

The engine takes a model, the batches of a dataset and plain settings; a run's identity is a plain
dict. It depends neither on Hydra nor on a registry of models or datasets.
"""
