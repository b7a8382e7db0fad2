"""What ``tools.faults`` runs: a file per kind of fault, and what they share."""
