"""Choose, open and keep the model that computes a run."""
