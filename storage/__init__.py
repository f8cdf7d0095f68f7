"""Where bytes live: folders and s3:// places, the manifest, Zarr stores, label images, receipts. No torch, no Ray."""
