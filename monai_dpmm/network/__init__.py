"""Slices in, anomaly maps out: geometry, frozen backbones, the detector; torch only."""
