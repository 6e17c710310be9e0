"""Whether a map can be trusted: is the slide H&E, is a spot like the training's, how good is a gene."""
