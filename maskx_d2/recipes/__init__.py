"""Mask heads on a frozen detector: cached RoI features, short trainings, cross-validation over classes."""
