"""The ground floor: errors, the alphabet of dimensions, the configuration. Imports nothing of ours."""
