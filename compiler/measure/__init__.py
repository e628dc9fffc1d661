"""Figures: time, accuracy, rooflines, the errors of ops."""
