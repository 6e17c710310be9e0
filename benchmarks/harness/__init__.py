"""How measurements are taken, and what is recorded with them."""
