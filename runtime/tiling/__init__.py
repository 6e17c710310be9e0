"""Place tiles on a slide and read them."""
