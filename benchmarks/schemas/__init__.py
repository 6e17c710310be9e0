"""Schemas of the JSON documents that benchmarks write."""
