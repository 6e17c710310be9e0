"""Turn a checkpoint, and reference sections for retrieval, into a bundle."""
