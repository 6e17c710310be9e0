"""Size and speed of the HTML page."""
