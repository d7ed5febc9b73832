"""Searches over keep ratio and loss weights with Ray Tune."""
