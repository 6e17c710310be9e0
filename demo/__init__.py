"""The whole way on a made-up slide."""
