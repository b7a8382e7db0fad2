"""Files that are written whole or not at all, and tables in Markdown. The standard library only."""
