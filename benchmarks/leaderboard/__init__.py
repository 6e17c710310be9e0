"""Published protocols, HEST-bench and STP-Bench: their folds, genes, head, score and row."""
