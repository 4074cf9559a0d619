"""A fleet of LLM engines behind proxies, simulated event by event, to compare ways of choosing a backend.

::

    catalogue -> workloads   what clients ask, and when: the traces; fixed, so that every policy gets the same
    fleet                    one run: clients -> replicas -> engines, on one virtual clock
    replica -> policies      a proxy: chooses by what it alone can know; `project` drives this project's own code
    *_engine -> batching     an engine: batches, slots or pages, prefix reuse; slow where real ones are slow
    figures -> report, plot  what clients saw
"""
