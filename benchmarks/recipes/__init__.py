"""Encoders of the recipe table at full size: export, memory, parity, speed."""
