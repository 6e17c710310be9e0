"""Embeddings and a bank in, expression out: the definition and its providers."""
