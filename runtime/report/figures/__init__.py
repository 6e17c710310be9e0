"""Figures of a map for print."""
