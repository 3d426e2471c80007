"""Manual curation: the verb `curate`, and the page on which a person keeps or drops samples.

`decisions.execute` is the verb, `page.write` writes the page of a run; `template.*` are its source.
Only `sweeps.cli` and tests import this package.
"""
