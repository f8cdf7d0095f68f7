"""Flags, one-sentence errors, exit codes, the command `ficklenet` and its reference pages."""
