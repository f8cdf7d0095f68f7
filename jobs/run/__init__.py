"""The run: its directory, its configuration, the table of its steps, selections of its images."""
