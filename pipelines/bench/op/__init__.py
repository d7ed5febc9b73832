"""The op against other implementations."""
