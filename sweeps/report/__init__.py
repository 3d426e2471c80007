"""The report: one HTML page with every figure and table of a run.

Entrance: `build` (`build`, `draw`, `write`). `sweeps.tracking` also uses `thumbnails`, `page.TitledStrip` and the
`Context` of a drawn report; `sweeps.cli.play` uses `thumbnails.colour_map`. Nothing here imports torch, diffusers,
transformers or Ray, and no stage imports the report.

context   what the sections use, computed once
gallery   which pictures are shown
figures   Matplotlib panels
sections  headings, text, tables and figures of each section
page      blocks, and the templates that draw them
"""
