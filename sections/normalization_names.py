"""Names of the normalizations, free of numpy so that commands can list them quickly."""

NORMALIZATION_NAMES = ("spot-wise", "gene-wise", "median-log1p", "log-share", "none")

NON_NEGATIVE = ("spot-wise", "gene-wise", "median-log1p")
"""Those that give no value below 0; `log-share` gives nothing else, and `none` what was measured."""
