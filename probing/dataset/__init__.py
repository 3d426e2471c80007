"""The dataset of a run: prompts and seeds, which samples are kept, and their split.

`prompts` (from files through `prompt_files`, or from the scenes grammar) comes first, `curation` and
`manual_decisions` follow once images are labelled, and `split` is what probes are fitted on. Imports neither torch
nor diffusers.
"""
