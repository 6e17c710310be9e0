"""Torch networks, state-dict compatible with the published code."""
