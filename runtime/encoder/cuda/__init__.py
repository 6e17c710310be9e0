"""Tiles to embeddings on an NVIDIA GPU."""
