"""The configurations of docs/behind-a-proxy.md for NGINX and Caddy, in front of the program."""
