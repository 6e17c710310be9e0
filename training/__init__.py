"""Contrastive training on measured sections."""
