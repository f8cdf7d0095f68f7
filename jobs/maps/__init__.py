"""From images to maps, and from maps to seeds and pseudo-labels."""
