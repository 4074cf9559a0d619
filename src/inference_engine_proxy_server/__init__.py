"""One OpenAI-compatible address in front of many LLM engine servers.

Words, the same everywhere:

* *client*: who calls us. *backend*: one running engine server at one base URL. *engine*: its kind
  (llama.cpp, vLLM, ...). *state*: the last thing a backend told us. *lease*: one request's place on one
  backend, from the pick until its last byte. *pool*: all backends with their states and leases.
  *model*: the name in a request body.

How the data flows::

    request  client > wire.client_connection > core.forwarder > core.backend_pool > wire.backend_connection > backend
    reply    backend > wire.backend_connection > wire.client_connection > client
    state    core.cache_refresher > backends.<engine> > core.backend_pool > core.balancer
"""

__version__ = "0.1.0"
