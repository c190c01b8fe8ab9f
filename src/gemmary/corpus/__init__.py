"""Data for tuning: rows of files in, packed batches of NumPy arrays out."""
