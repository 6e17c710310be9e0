"""Many slides: a table of them in turn, or over a Ray cluster."""
