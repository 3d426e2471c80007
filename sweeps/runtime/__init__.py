"""What all stages of a run share: the opened run and its store, its grid of probes, progress, failures, machines.

`run` opens or creates a run; `grid` and `experiments` list its probes. Imports only `config` and lower packages.
"""
