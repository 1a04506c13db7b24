"""What a reader sees: a folder of results becomes a page."""
