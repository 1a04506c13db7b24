"""Figures for a publication."""
