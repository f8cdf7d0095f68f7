"""Labels and maps in other programs' formats."""
