"""Figures, tables and the numbers file of an evaluation."""
