"""Several replicas of the proxy behind NGINX, and two machines that share an address."""
