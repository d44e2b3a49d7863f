"""DDCap: discrete diffusion for image captioning."""

__version__ = "0.1.0"
