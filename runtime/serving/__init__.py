"""A model server in place of a local bundle."""
