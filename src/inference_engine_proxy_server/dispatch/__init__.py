"""The life of a request: lease or queue, forward, retry, close the lease."""
