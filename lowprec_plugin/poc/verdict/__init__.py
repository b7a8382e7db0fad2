"""From the runs to a verdict in words. No file is read or written here."""
