"""Loops over scans and patches: Ignite engines, their handlers, several processes."""
