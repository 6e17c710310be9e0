"""The expression map (.h5ad): written, resumed, read, compared."""
