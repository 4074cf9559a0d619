"""The choice of a backend for a request. Pure: no clock, no I/O."""
