"""The commands of `python -m eval_runners`, one module each."""
