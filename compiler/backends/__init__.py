"""Chips: what a library for each needs, and how its code is made and checked."""
