"""Count matrices, bins and transcripts in the files of 10x Genomics."""
