"""Images and annotations: reading, checking, generating, augmenting, batching."""
