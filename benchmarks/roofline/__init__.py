"""Upper bounds of speed: peaks of a machine, work of a graph."""
