"""The stages of a run, in order: sample, label, curate, probe, experiments, intervene.

Each module is one stage (see `base.Stage`): it finds its missing tasks, executes them, reports its status and prices
its work. `sweeps.stages.all` lists them; pipeline, `status` and `plan` loop over that list. May be imported by
`analysis` and everything above; imports `config` and `runtime`. No module here imports torch, diffusers or Ray when it
is loaded: workers import them when they are built.
"""
