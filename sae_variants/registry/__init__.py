"""Discovery of variants, their contract, and building and loading of SAEs."""
