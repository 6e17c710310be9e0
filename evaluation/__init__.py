"""What a map is worth against measured expression: mclst-eval."""
