"""What users start: the command line, the workflows' settings, released bundles."""
