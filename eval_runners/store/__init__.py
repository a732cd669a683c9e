"""Result files and caches on disk: where they lie, how they are written, and how they are read."""
