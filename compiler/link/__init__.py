"""A plan, objects and data become one shared library."""
