"""The backends: their configuration, reported state and health, and the loops that keep them up to date."""
