"""Reads what the operator configures (settings, the fleet, clients' keys), checks it, and explains what is wrong."""
