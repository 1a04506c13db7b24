"""Frozen patch-embedding backbones, and where their weights come from."""
