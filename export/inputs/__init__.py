"""What an export starts from: checkpoint, reference sections, bank."""
