"""TensorRT engines: built, cached, run."""
