"""Whole runs as functions: configs, and the recipes that fill them."""
