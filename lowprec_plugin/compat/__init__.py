"""Private names of torch and Lightning that are read here and nowhere else: each is there, or an error names it."""
