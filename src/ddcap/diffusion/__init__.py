"""The forward process and its exact reverse: pure mathematics on tensors."""
