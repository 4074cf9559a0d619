"""Access control: the gate that checks API keys, the limits of each key, and its token usage."""
