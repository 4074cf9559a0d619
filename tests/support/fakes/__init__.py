"""Stand-ins over real sockets: an engine that does what a test tells it to, and a client that does the same."""
