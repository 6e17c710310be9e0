"""What the columns of an evaluation are called and mean."""

from __future__ import annotations

DEFINITIONS = (
    "PCC (ACG)  Pearson r per gene over the spots, mean over all genes with a defined r",
    "PCC (HEG)  the same over the 50 genes with the highest mean in the truth; undefined if one r is",
    "MSE, MAE   mean squared and absolute error over all spots and genes, in the map's units",
    "mean       mean over the sections with equal weights",
    "gene-gene  Pearson r between the gene-gene correlations of prediction and truth, over all pairs",
    "-log10 p   of each gene's r (two-sided), mean over the sections; the sign of r is ignored",
    "corrected  the published -log10 p takes spots for independent, and is too high; this one takes their",
    "           effective number (Clifford, Richardson & Hémon 1989; Dutilleul 1993)",
    "FDR        false discovery rate of the corrected p over the genes (Benjamini & Hochberg 1995)",
    "Spearman   Pearson r of the ranks; CCC: Lin's concordance; both mean over the genes",
    "R²         1 - squared error / variance of the truth, median over the genes; 0: the section's own mean",
    "variance   of the map over the truth's, median over the genes: below 1, the map smooths",
    "SSIM       structural similarity of the maps in windows of 1.5 spot distances, mean over the genes",
    "Moran's I  spatial structure of map and truth, mean over the genes: a map far above the truth smooths",
    "partial r  Pearson r given the spot's total counts (log) and, with images, its stain and nuclei",
    "pooled r   over the spots of all sections together; it rewards differences between sections",
)
"""Definitions of the printed measures; the first six lines are the published scripts'."""
SCORES = {
    "method": "method",
    "section": "section",
    "spots": "spots",
    "pcc_acg": "PCC (ACG)",
    "pcc_heg": "PCC (HEG)",
    "mse": "MSE",
    "mae": "MAE",
    "coexpression": "gene-gene r",
    "ari": "ARI",
    "nmi": "NMI",
}
"""Headings of the published measures by column."""
STRUCTURE = {
    "method": "method",
    "section": "section",
    "spearman": "Spearman",
    "ccc": "CCC",
    "r2": "R²",
    "relative_variance": "variance",
    "pcc_partial": "partial r",
    "pcc_pooled": "pooled r",
    "ssim": "SSIM",
    "morans_i_map": "Moran's I",
    "morans_i_truth": "of truth",
    "effective_spots": "eff. spots",
    "genes_fdr_5": "genes, FDR 5 %",
}
"""Headings of what the published measures leave out."""
GENE_HEADINGS = {
    "minus_log10_p": "-log10 p as published",
    "pcc": "mean r",
    "minus_log10_p_spatial": "-log10 p corrected",
    "fdr": "FDR",
    "spearman": "Spearman",
    "ccc": "CCC",
    "r2": "R²",
    "relative_variance": "variance of map / truth",
    "mse": "MSE",
    "pcc_partial": "partial r",
    "ssim": "SSIM",
    "morans_i_map": "Moran's I of map",
    "morans_i_truth": "Moran's I of truth",
    "effective_spots": "effective spots",
}

BASELINES = {
    "method": "method",
    "against": "baseline",
    "sees": "which sees",
    "pcc_against": "its mean r",
    "pcc": "map's",
    "pcc_interval": "map − baseline [95 %]",
    "mse_against": "its MSE",
    "mse": "map's MSE",
    "mse_interval": "gain of the map [95 %]",
    "genes_better": "genes better in map",
    "outcome": "the map is",
}
"""Headings of the comparison over all genes."""
SEVERITY = {"leak": "LEAK", "note": "Note"}
RESAMPLED = {
    "blocks": "1,000 resamples of nine blocks of neighboring spots per section",
    "sections": "1,000 resamples of the sections",
    "patients": "1,000 resamples of the patients",
}
"""What the intervals are made of."""
