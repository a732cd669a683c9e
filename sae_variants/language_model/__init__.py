"""Language models, the hooks at which activations are read, and texts."""
