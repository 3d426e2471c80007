"""How activations change while an image is sampled: `edit` (the paper's edit and its controls), built on `steer` (the
inner optimisation) and `readout` (target labels on grids), and `patching` (another image's activations).
"""
