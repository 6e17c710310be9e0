"""Open and keep the model that computes a run."""
