"""The whole command as typed, beside the notebook and plain scripts as whole processes."""
