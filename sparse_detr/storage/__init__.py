"""Files and folders, local or in a store."""
