"""The command ``lowprec``."""
