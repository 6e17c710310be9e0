"""A million cells as spots, and millions of bins pooled: time and peak memory, a process each."""
