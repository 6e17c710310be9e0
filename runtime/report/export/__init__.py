"""A map in other formats: GeoJSON, SpatialData, tables, OME-TIFF."""
