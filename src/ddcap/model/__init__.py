"""The captioning models: image encoders, the denoiser and its twin, their folder, their light runtime."""
