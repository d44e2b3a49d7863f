"""From a model and a data split to numbers that can be compared."""
