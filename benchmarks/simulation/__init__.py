"""Discrete-event simulation of a fleet of LLM engines behind proxies, to compare balancing policies.

::

    catalogue -> workloads   the traces: the clients' requests and their times; fixed, so identical for every policy
    fleet                    one run: clients -> replicas -> engines, on one virtual clock
    replica -> policies      a proxy, which knows only what a real one can know; `project` runs this project's own code
    *_engine -> batching     an engine: batching, slots or pages, prefix reuse, with realistic costs
    figures -> report, plot  the results as clients see them
"""
