"""Metrics and logs, both fed by one record for each request."""
