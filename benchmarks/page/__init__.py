"""How fast the HTML page draws."""
