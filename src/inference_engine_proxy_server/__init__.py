"""One OpenAI-compatible address in front of many LLM engine servers.

Words, the same everywhere:

* *client*: who calls us. *backend*: one running engine server at one base URL. *engine*: its kind
  (llama.cpp, vLLM, ...). *evidence*: what a backend tells, and what happens to requests on it. *health*: what
  follows from it (starting, up, busy, suspect, down). *lease*: one request's place on one backend, from the pick
  until its last byte. *line*: those who wait for a place. *pool*: all backends with their health and leases.
  *fleet*: the backends that the operator lists. *model*: the name in a request body. *worker*: one of several
  processes that share the port. *sibling*: another worker, as one sees it. *supervisor*: the process above them.

How the data flows::

    request  client > wire.client_connection > dispatch.forwarder > wire.backend_connection > backend
    reply    backend > wire.backend_connection > wire.client_connection > client
    state    fleet.cache_refresher > backends.<engine> > fleet.fleet > routing.placement > dispatch.leases
"""

__version__ = "0.1.0"
