"""Image encoders by name: how each is built, what its tiles look like, and how its weights are read."""
