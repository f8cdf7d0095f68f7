"""Masks that were corrected in other tools: a module for each kind of file."""
