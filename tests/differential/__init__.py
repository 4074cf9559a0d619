"""Real servers must interpret forwarded requests as the proxy does."""
