"""FickleNet's method, arrays in and arrays out: networks, losses, masks, maps. No files, no cluster."""
