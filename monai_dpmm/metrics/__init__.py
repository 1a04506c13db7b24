"""How good anomaly maps are, in constant memory."""
