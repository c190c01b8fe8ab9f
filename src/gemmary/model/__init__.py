"""The Keras forward pass, its cache and its weights."""
