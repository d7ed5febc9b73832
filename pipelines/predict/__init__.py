"""Listing, detection and sinks of batch inference."""
