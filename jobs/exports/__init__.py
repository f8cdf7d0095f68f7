"""Exports labels and maps in other programs' formats, and imports corrected masks."""
