"""Measures label maps against masks."""
