"""`inference-proxy top`: the dashboard's snapshot in a terminal, as a live page or once as text."""
