"""What clients and operators see in each known fault case; the name of a test begins with the number of its case.

The failing engine is scripted or a real llama.cpp server, behind the whole program and over real sockets. After every
test, the fixture ``fleet`` checks that no request, lease or connection is left. docs/fault-tests.md lists the cases.
"""
