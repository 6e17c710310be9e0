"""Names of the normalizations, free of numpy so that commands can list them quickly."""

NORMALIZATION_NAMES = ("spot-wise", "gene-wise", "median-log1p", "log-share", "none")
