"""Worked example of a package that adds a kind of control and a detector to controlkit."""
