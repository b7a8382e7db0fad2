"""Private names of torch and Lightning that are read here and nowhere else, and the packages that Lightning is found in."""
