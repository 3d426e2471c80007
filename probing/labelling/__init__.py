"""Labellers of images: the paper's (TRACER, MiDaS) and alternatives (Depth Anything, rembg, scenes).

`registry` is the entrance: it names every labeller, builds them, and takes those of other packages. `safety` stands
apart, because it flags whole images. The other modules load one model each; `checkpoints` and `hub` read foreign
weights, `images` resizes as the models' authors do. Imports nothing of `probing` but `scenes` and `libraries`.
"""
