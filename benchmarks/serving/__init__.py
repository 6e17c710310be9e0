"""mclst-bench load: a model server under load."""
