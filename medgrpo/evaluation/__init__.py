"""Evaluation: answers of several models to the same cases, metrics with intervals, paired tests, and the report."""
