"""Command-line options: parsers, and options from dataclasses."""
