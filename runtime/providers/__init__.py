"""Which provider and precision run an encoder here: what is there, what is tried, what is remembered."""
