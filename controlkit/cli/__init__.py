"""Command line: `controlkit ...`."""
