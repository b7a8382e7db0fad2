"""What depends on a host's version: private names, each there or named in an error, and what has several names."""
