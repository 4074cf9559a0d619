"""The recipes of docs/clients.md, run as they stand there, against real llama.cpp servers behind the real proxy.

* ``recipes``  the page's code blocks, and what one of them writes when it is run
* ``browser``  a page in a headless browser, which comes from another origin than the proxy
* ``conftest`` the servers and the proxy
"""
