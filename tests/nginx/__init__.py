"""NGINX with the configuration of the Compose files, in front of the real program and real llama.cpp servers.

* ``server``   prepares the configuration as the official image does, and runs NGINX with it
"""
