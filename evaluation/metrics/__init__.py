"""Measures of a map per gene, over sections, over sets of genes."""
