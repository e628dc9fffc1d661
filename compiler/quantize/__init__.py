"""A float graph becomes an integer program."""
