"""Analyse why diffusion is behind its twin: its losses, its errors, and what compute and choice are worth."""
