"""Scorers: rules, any Python function, reward models, and weighted sums of them. Free of torch."""
