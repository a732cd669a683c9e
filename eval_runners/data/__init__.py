"""Text that evaluations read: held-out contexts and labelled documents, and their activations."""
