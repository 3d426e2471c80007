"""The science of reading: what probes find in a diffusion model's activations.

`dataset` chooses prompts and samples, `diffusion` samples and records, `labelling` makes the targets, `probes` fits
and `scoring` scores; `scenes` is the embedded model and its world, `planted` has models of which it is known what they
use. Imports no other package of this project.
"""
