"""Timing, statistics, machine state and output that the benchmarks share."""
