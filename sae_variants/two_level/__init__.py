"""Core of the variants with two levels of latents."""
