"""Rows, boards and their rendering, from result files alone. Imports no torch."""
