"""How often the evaluation finds something where there is nothing."""
