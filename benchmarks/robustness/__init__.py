"""How much expression changes when the same tissue is stained, scanned or stored otherwise."""
