"""Reads requests: destination, model, prompt and named resources. Pure."""
