"""What ``tools/faults.py`` runs: a file per kind of fault, and what they share."""
