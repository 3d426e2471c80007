"""The W&B mirror of a sweep, written by the driver from the results tables; wandb is imported only where it is used.

Entrance: `mirror.mirror` writes and sends the runs, `workspace.save` the dashboards. `runs` plans one run per site or
probe, `summary` fills the summary run. Imported by pipeline and cli; imports analysis and report.
"""
