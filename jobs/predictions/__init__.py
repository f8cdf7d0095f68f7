"""The segmentation network's masks."""
