"""The experiment: settings, stages, analysis, report, W&B mirror and command line.

`pipeline.execute` runs stages of a configuration; `cli.main` is the command line. From the bottom up, the rooms are
`config`, `runtime`, `stages`, `planning`, `analysis`, `report`, `tracking`, `pipeline`, `curation`, `bench`, `cli`;
each imports only from those below it.
"""
