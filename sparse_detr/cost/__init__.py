"""Operations of a model by formula, and its latency."""
