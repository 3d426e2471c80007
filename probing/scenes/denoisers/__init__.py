"""The networks that denoise latents of the scenes world: a UNet and a transformer, and what their trainings share."""
