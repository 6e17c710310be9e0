"""mclst inside other tools: LazySlide and TIAToolbox."""
