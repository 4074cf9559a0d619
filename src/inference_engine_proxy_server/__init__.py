"""One OpenAI-compatible address in front of many LLM engine servers.

Glossary:

* *client*: a program that sends requests to the proxy. *backend*: one running engine server at one base URL.
  *engine*: its kind (llama.cpp, vLLM, ...). *fleet*: all backends. *model*: the name in a request body.
* *evidence*: what a backend reports, and the results of requests to it. *health*: the state that follows from evidence
  (starting, up, busy, suspect, down). *review*: the update of everything that follows from new or older evidence.
* *slot*: room for one request on a backend. *lease*: one request's claim on a backend, from the choice of the backend
  to the last byte. *queue*: the requests that wait for a slot. *lane*: the part of the queue that waits for the same
  backends.
* *candidate*: a backend that may be chosen for a request. *policy*: a rule that chooses among candidates. *affinity*:
  the tie of a request to the backend that holds a resource, its *home*.
* *exchange*: one request and its reply. *block*: bytes that arrive or are sent at once; in a prompt, a part that is
hashed. *chunk*: a chunk of HTTP/1.1's
  chunked coding.
* *worker*: one of several processes that share the port. *sibling*: another worker, as seen from one of them.
  *supervisor*: their parent process. *replica*: another instance of the proxy in front of the same engines.

How the data flows::

    request  client > wire.client_connection > dispatch.forwarder > wire.backend_connection > backend
    reply    backend > wire.backend_connection > wire.client_connection > client
    state    fleet.cache_refresher > backends.<engine> > fleet.fleet > routing.placement > dispatch.leases
"""

__version__ = "0.1.0"
