"""The demo's simulated scans."""
