"""What trains: seeding, step, loop, checkpoints, records and provenance.

The engine receives a model, the batches of a dataset and plain settings. It hashes a plain dict
and knows neither Hydra nor a registry of models or datasets.
"""
