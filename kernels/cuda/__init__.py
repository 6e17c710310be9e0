"""The CUDA provider."""
