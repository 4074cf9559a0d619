"""Own paths, as FastAPI routers: thin readers of snapshots. None of them polls a backend."""
