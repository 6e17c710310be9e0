"""Compare every exported graph with its checkpoint."""
