"""Makes a manifest from a data set."""
