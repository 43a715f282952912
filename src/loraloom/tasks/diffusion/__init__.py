"""Text-to-image models: what a diffusers pipeline is made of, and where it comes from."""

from loraloom.tasks.diffusion.base import Diffusion, load_diffusion

__all__ = ["Diffusion", "load_diffusion"]
