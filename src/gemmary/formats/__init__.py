"""Files on disk: weights, vocabularies, block formats. NumPy only."""
