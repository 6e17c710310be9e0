"""Files made from a map: page, figures, exports."""
