"""One slide, from options to files."""
