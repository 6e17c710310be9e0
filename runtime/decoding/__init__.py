"""Decoding of many segments in one call, outside the GIL."""
