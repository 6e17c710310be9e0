"""mclst-bench accuracy: cross-validation."""
