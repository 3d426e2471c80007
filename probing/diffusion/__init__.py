"""probing/diffusion"""
