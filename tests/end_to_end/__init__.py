"""The real program, in a process of its own, in front of real llama.cpp servers.

* ``program``      starts the proxy and shows what it prints
* ``http_client``  a client that decides itself when to send, read and leave
* ``waiting``      waits for conditions
* ``conftest``     models, fleets and proxies as fixtures
"""
