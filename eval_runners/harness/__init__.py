"""The way from a name that a user types to an SAE on disk, and from the SAE to its result."""
