"""The report on a proof of concept, made of its files alone."""
