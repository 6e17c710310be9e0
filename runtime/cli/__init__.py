"""The commands mclst-infer and mclst-report, and their options."""
