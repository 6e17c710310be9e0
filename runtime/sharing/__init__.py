"""A bundle for others: described, packed, signed, at the Hugging Face hub, as a bioimage.io model."""
