"""Comparisons with what a competent user would run otherwise."""
