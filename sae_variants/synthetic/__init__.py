"""Synthetic models with known features: SAELens' own, as targets of training and of the evaluation `ground_truth`."""
