"""Committed MetaSchedule databases, one folder per target; data only."""
