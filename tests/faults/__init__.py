"""What clients and operators see when backends fail in the ways that are known: one test a case, by its number.

What fails is an engine that a test scripts, or a real llama.cpp; the whole program stands in front of it, over real
sockets. Whatever the case, nothing may be left behind: the fixture ``fleet`` looks after every test. The numbers are
those of docs/reliability.md.
"""
