"""The embedded `scenes` world and its small latent diffusion model."""
