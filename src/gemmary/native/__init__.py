"""The forward pass in C, and its face in Python."""
