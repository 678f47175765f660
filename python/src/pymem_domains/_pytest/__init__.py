"""The pytest plugin: a session on any row, limits of memory for single tests."""
