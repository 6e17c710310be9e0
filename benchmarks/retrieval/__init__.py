"""mclst-bench retrieval."""
