"""Data sets: imported, generated, checked."""
