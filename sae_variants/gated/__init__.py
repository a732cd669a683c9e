"""Latents that fire only under another one."""

# SAELens first: once it is imported, all variants are, and they need the modules of this room whole
import sae_lens  # noqa: F401
