"""The life of a request: take a lease or wait in the queue, send, retry, release the lease."""
