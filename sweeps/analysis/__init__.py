"""Numbers of a run, computed from its tables alone: no torch, ray or wandb at module level.

Entrance: `tables.load` reads a run, `scores.collect` its scores, `vocabulary` has every display name. `summary`,
`baselines`, `claims`, `experiments` and the others compute what the report and the W&B mirror show. Imported by report,
tracking and cli; imports config and runtime, and never a stage, the report or tracking.
"""
