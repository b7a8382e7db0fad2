"""Functions of the command ``lowprec`` that have no better place."""
