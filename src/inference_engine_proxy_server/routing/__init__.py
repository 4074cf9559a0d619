"""The choice of a backend for each request, and the knowledge that it needs. No I/O."""
