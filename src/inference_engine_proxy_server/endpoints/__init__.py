"""The proxy's own paths, as FastAPI routers that only read snapshots and never poll a backend."""
