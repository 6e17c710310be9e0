"""Proof that the exported graph equals the checkpoint."""
