"""Reads and writes data: folders and s3:// places, manifest, Zarr stores, label images, receipts. No torch, no Ray."""
