"""mclst-bench end-to-end: from slide to map."""
