"""A training that carries on from the shipped weights and ends, with weights and card, within a number of minutes.

`run.run` is the entrance; `trial` finds out which batch is fastest on the device at hand, in a process of its own.
"""
