"""Prometheus, with the rules and the dashboard in monitoring/."""
