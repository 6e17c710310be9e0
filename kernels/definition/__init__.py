"""Retrieval defined in float64, and the contract of its providers."""
