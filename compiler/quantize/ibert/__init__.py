"""Recipe ibert: a float graph plus the ranges that training recorded becomes integers.

`scales` reads the ranges, `rules` has one rule per kind of node, `attention_mass` says how much of
its mass the integer attention keeps.
"""
