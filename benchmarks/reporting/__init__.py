"""Benchmark results as tables, comparisons and pages."""
