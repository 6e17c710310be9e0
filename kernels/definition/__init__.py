"""The float64 definition of retrieval and the interface of its providers."""
