"""The commands mclst-infer, mclst-report and mclst-bundle, and their options."""
