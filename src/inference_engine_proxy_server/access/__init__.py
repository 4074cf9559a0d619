"""API keys of clients and operators: who may pass, and how much each key may use."""
