"""Where tiles lie on a slide, and how they are cut."""
