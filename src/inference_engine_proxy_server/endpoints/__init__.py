"""Our own paths, as FastAPI routers: thin readers of what the pool knows. None of them asks a backend."""
