"""Token usage: counts the tokens of each request, and keeps them by hour, key and model.

::

    tokens.py         the tokens of one request, from the facts in its reply, else estimated
    token_counter.py  the observer that counts them when the reply ends
    usage_event.py    takes an event out of a stream that the client did not ask for
    periods.py        hours, days and months in UTC
    spending.py       tokens that each key has used today and this month, for budgets
    counts.py         what is counted, and how counts are summed
    ledger_file.py    the SQLite file
    ledger.py         collects counts, and writes them in batches
    query.py          which rows an operator or a client wants to see
    report.py         rows as JSON, as CSV, and as a table
"""
