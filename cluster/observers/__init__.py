"""Observers of a run's events: Prometheus metrics and structured logs.

`combined` is the entrance: an executor that adds both. `logs` also configures Ray's logging and
filters the logs of jobs. Used by `cluster.session` and by `sweeps`.
"""
