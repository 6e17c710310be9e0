"""The FAISS provider."""
