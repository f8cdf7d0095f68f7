"""File formats of other tools: a module each, with `export_image` for one image and `finish` for the whole."""
