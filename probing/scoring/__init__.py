"""Labels pooled to a site's grid, and exact losses, scores and floors computed from them.

`targets` pools labels and `floors` scores masks that need no activation, both with numpy alone; `losses` and `metrics`
score predictions and import torch. Any package may import all four.
"""
