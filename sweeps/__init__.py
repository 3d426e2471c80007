"""Sweeps: configuration, the Tune fan-out, W&B mirror, report and command line."""
