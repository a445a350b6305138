"""Flows: what happens, in order."""
