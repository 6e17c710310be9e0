"""Read checkpoints and reference sections."""
