"""Helpers that know nothing of sparse autoencoders: errors, files, hashes, values, console."""
