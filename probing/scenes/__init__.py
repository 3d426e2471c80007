"""The embedded scenes world: a renderer with known depth and masks, and a small latent diffusion model trained on it.

Entrance: `render.draw_scene` and `render.render` (the world), `truth` (renders as probing data), `weights` and
`teacher` (the labelling network that ships), `training.run` (trains everything again) and `evaluate` (its model card).
`grammar` and `world` import no heavy library.
"""
