"""The FickleNet method as functions of arrays: networks, losses, masks, maps. It uses no files and no cluster."""
