"""Figures of the report as Matplotlib panels, each with alternative text and the numbers behind it.

`base` has `Panel`, colours and shared drawing; the other modules draw one subject each and are called by
`report.sections`. A new figure is a function here that returns a `Panel`, placed in a section by a `Figures` block.
"""
