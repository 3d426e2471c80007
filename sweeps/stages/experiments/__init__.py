"""The experiments that follow the probes: emergence, transfer, converged references, ground truth of renders.

`stage` runs them all as one stage; each other module is one experiment.
"""

from sweeps.stages.experiments import stage

__all__ = ["stage"]
