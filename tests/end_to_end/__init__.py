"""The real program in its own process, in front of real llama.cpp servers.

* ``program``      starts the proxy and reads its output
* ``http_client``  a client whose tests decide when to send, read and disconnect
* ``waiting``      waits for conditions
* ``conftest``     models, fleets and proxies as fixtures
"""
