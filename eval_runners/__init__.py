"""Evaluations of sparse autoencoders: SAEBench's, unchanged, and ours beside them: `python -m eval_runners.core`."""
