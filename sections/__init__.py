"""Measured tissue sections and spot tables, read and normalised."""
