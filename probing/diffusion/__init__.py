"""The diffusion model under study: configuration, sites, sampling with capture, and hooks into its network.

`config`, `metadata`, `sites`, `variants` and `devices` import neither torch nor diffusers, so that plans, status and
reports are quick. Work with a loaded model begins with `model.load` and `model.variant`; `sampling.sample`,
`capture.capture` and `replay` run it, `hooks` record or rewrite its sites.
"""
