"""What people and other programs open instead of the map itself: a page, figures, tables, QuPath, SpatialData."""
