"""Exports of a map: GeoJSON, SpatialData, tables, OME-TIFF."""
