"""API keys of clients and operators: what each key permits, and how much it may use."""
