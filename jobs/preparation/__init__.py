"""From a data set to a manifest."""
