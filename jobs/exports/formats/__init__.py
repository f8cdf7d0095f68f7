"""File formats of other tools. Each is a module with `export_image` for one image and `finish` for the whole export."""
