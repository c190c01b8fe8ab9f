"""The library in C, tokens and the forward pass, and its face in Python."""
