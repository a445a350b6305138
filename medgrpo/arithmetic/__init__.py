"""Arithmetic in running text: numbers, equations and what they compute with, read exactly and without a model."""
