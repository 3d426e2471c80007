"""Planted models: Stable Diffusion pipelines whose weights are written by hand, so that what they use is known.

Each paints a mask and a depth map that follow from the noise; one self-attention site carries both linearly.
`networks` writes the weights, `pipeline.save` writes a folder that `model.name` accepts, `labels` reads mask and depth
back from the picture. `networks.USED` paints from the site, `networks.READ_ONLY` does not, and `networks.DISTRACTOR`
paints from the site along a direction that a fitted probe's weights avoid. `unweighted` is something else: published
models with random weights, for measurements of speed.
"""
