"""Data sets, one file each; all are endless, numbered lists of tasks."""
