"""Labels measured against masks."""
