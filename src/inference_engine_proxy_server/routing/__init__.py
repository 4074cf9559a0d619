"""The choice of a backend for each request, and what routing learns for it. No I/O."""
