"""One OpenAI-compatible address in front of many LLM engine servers.

Glossary. Code, documentation, log lines and metrics use these terms:

* *client*: a program that sends requests to the proxy. *Operator*: a person who runs the proxy.
* *backend*: one engine server at one base URL. *Engine*: its kind (llama.cpp, vLLM, ...). *Fleet*: all backends.
* *model*: the name in a request body. A *strict* backend rejects models that it does not list; others accept any name.
  *Alias*: another name that the operator gives a model. *Catalog*: all names and parameters that the operator defines.
* *exchange*: one request of a client with its reply. *Destination*: what handles a request: the proxy itself, a
  backend, or nothing because the path is blocked.
* *router*: a llama.cpp server with many models, of which it has some in memory. *Turn*: how long a model keeps its
  place there while a request for another model waits.
* *slot*: capacity of a backend for one request. A backend is *full* when its load reaches its limit.
* *lease*: one request's claim on one backend, from its selection to the last byte of the reply.
* *load*: the requests of one backend, made of the leases of all workers and *foreign load*, which comes from others.
* *queue*: requests that wait for a slot. Each *lane* has those that the same backends can serve. Senders get a *fair
  share* of it.
* *source*: what finds backends, such as the configuration. The fleet is the union of what all sources have found.
  *Roster*: the backends that joined while the proxy runs: those that operators *added*, and those that *announced*
  themselves for the seconds of a lease.
* *candidate*: a backend as routing sees it. *Placement*: the step that picks one. *Policy*: the rule by which it picks.
  *Decision*: the record of a pick with its reasons.
* *affinity*: a request's preference for, or obligation to, one backend, its *home* backend. *Backend-local resource*: a
  response, stored completion or stream that exists on one backend only.
* *prompt router*: learns cached prefixes, pending work and speeds of backends from requests and replies. *Pending
  work*: prompts not yet read and answers not yet written. *Cache estimate*: how much a backend is expected to keep
  cached.
* *attempt*: one try of a request on one backend. *Retry*: a further attempt. *Failover*: a retry on another backend.
* *evidence*: results of polls and requests, from which health is derived. *State*: starting, up, busy, suspect or down.
* *poll*: a query of a backend's state. *Trial*: one request that tests a suspect backend. *Suspension*: the time for
  which a failing backend gets no requests. *Drain*: give no new requests and let running ones finish.
* *observer*: a part that watches replies or fleet changes without altering them.
* *gate*: checks API keys. *Allowance*: how much of its limits a key has left. *Budget*: the tokens
  that a key may use in a day or a month. *Ledger*: the tokens of each hour, key and model, kept in a file.
* *block*: bytes that arrive or are sent at once; in a prompt, a part that is hashed. *Chunk*: a chunk of HTTP/1.1's
  chunked coding.
* *worker*: one of several processes that share the port. *Sibling*: another worker. *Supervisor*: the parent process.
  *Replica*: another instance of the proxy in front of the same engines. *Member*: a process of any replica that shares
  state with others. *Grant*: what a member may use of a limit until its next report.

Data flow through the packages (their ``__init__`` says what each one does)::

    request  client > wire > access > requests > dispatch > routing > dispatch > wire > backend
    reply    backend > wire > client; observers in dispatch pass facts on to usage, routing and telemetry
    state    backend > backends/<engine> > fleet > routing; a freed slot goes to the queue in dispatch
    own      client > wire > access > endpoints, which read fleet, routing, telemetry and, through processes, siblings
    shared   replicas, which exchanges what fleet, routing and endpoints learn with other replicas, through state
    limits   overload > wire, which rejects requests before their bodies
    start    cli > server > processes (hosting) > composition, which builds all parts from config
"""

__version__ = "1.0.0"
