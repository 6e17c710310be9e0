"""mclst-bench latency: the encoder alone."""
