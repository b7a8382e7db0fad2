"""One proof of concept: what is compared, and the runs that make it."""
