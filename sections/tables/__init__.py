"""Spot tables and gene lists, read strictly."""
