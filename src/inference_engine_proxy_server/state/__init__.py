"""State that several replicas share in Redis or Valkey, while STATE_URL is set. Else nothing here is imported.

::

    availability.py   whether the server answers, and when to try again. Pure
    redis_client.py   the client, with short deadlines and no retries of its own
    shared_state.py   the connection of one process, its keys, and the members that share the state
    broadcast.py      messages to all members
    records.py        small records that all members have in common. Pure
    record_exchange.py  how they reach all members
    outbox.py         messages that are sent in the background
    questions.py      questions to other replicas, and their answers
    inspection.py     one look at the server from outside a running proxy

Every process of every replica is a *member*. No request waits for the server: loops in the background exchange state
with it, and what they have learned is in memory.
"""
