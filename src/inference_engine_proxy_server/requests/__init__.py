"""Reads what a request asks for: its destination, model, prompt and named resources. Pure."""
