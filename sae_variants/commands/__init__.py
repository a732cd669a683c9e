"""Commands of `python -m sae_variants` and the scripts that build the sandbox."""
