"""Measured sections in the formats they come in."""
