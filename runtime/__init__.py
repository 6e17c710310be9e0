"""A bundle and a slide in, an expression map out; numpy in, numpy out, never torch."""
