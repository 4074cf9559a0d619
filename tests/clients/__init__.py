"""The recipes of docs/clients.md, run unchanged against real llama.cpp servers behind the real proxy.

* ``recipes``  the code blocks of the page, and the output of a block that is run
* ``browser``  a page in a headless browser, from another origin than the proxy or controlled by a test
* ``conftest`` the servers and the proxy
"""
