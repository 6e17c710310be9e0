"""mclst-bench tiles: slide readers."""
