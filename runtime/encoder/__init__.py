"""Tiles to embeddings: the session contract, the batch ring, and the CPU sessions."""
