"""Methods compared, the tables and figures of a paper, the demo's simulated scans."""
