"""The embedded language model and its corpus, for work without network."""
