"""Schedulers: ways to go from MASK to a caption, step by step, with the interface of diffusers'."""
