"""Accuracy of maps against measured expression: mclst-eval."""
