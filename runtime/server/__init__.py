"""A bundle behind an Open Inference Protocol server: a slide's tiles go there, its expression comes back."""
