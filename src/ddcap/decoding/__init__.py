"""From a trained model to captions."""
