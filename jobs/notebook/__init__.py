"""Functions for notebooks and other programs: a trained run, its networks on single images, its results."""
