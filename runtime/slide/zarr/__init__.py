"""Arrays of Zarr 2 and 3, read chunk by chunk."""
