"""Bytes of slides by offset, wherever the slides are."""
