"""Schedules: one file per chip family. They meet ops by block name, and import none."""
