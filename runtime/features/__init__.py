"""Features of a slide's tiles, kept between runs."""
