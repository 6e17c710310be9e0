"""A checkpoint and reference sections in, a bundle out."""
