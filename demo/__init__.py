"""End-to-end demo on a synthetic slide: mclst-demo."""
