"""The captioning models: image encoders, the denoiser, the autoregressive model, files, ONNX graphs."""
