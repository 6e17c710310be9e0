"""mclst-bench systems and precision: the six systems, and reduced precisions."""
