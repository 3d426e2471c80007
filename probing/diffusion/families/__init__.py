"""One adapter for each family of pipelines: how its network is conditioned, called and laid out.

`registry` and `layouts` import neither torch nor diffusers. The rest of the package works with
`base.LatentDiffusion`; the other modules hide what differs: packed latents, learned variances, embedded guidance,
class labels.
"""
