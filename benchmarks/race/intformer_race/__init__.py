"""`make bench`: contestants, driver, marks and report."""
