"""Where edits get their probes and activation statistics: `base` (keys and callables), `stored` (a finished run),
`authors` (the probes that the paper's authors publish), `cache` (device tensors, kept between images).
"""
