"""Whether what the proxy passes on means the same to real servers as it does to the proxy."""
