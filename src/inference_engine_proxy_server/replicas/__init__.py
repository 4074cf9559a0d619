"""What several replicas of the proxy tell each other, while STATE_URL is set. Else nothing here is imported.

::

    drains.py        operators' drains and undrains
    joined.py        backends that join and leave while the proxies run
    doubts.py        backends that a replica has found out of order
    resources.py     which backend has which response, stored completion or stream, and whose it is
    turns.py         which backend served a conversation last
    neighbours.py    the other replicas: who they are, and what they know of the fleet

Every process sends what it learns. What concerns the whole replica is carried out by one process of it, the *link*.
"""
