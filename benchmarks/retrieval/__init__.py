"""mclst-bench retrieval: embeddings to expression."""
