"""mclst-bench memory: peak memory of dense maps."""
