"""Tests and benchmarks of a GPU in one run: make gpu-check."""
