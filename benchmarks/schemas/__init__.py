"""The JSON documents that benchmarks write."""
