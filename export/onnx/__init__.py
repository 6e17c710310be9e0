"""PyTorch networks as ONNX graphs, in every precision."""
