"""Readers: a checkpoint becomes an IntModel."""
