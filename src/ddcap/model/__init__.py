"""From pixels and noised tokens to a prediction of the caption."""
