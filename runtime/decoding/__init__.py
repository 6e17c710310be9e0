"""Work on many pixels in one call outside the GIL: decoding, cutting, reducing."""
