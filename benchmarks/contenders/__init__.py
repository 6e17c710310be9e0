"""Contenders of the benchmarks: mclst and its peers."""
