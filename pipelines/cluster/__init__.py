"""The Ray cluster: connection, resources, credentials, user errors between processes."""
