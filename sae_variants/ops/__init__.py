"""Tensor functions that more than one variant uses."""
