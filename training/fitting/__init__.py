"""Fit a head on the features of a frozen encoder."""
