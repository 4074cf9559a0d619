"""Hours of random faults and every kind of client at once: `scripts/test.sh soak`. Not collected by pytest.

* ``engine``       a scripted engine: the program of a process that misbehaves on command
* ``engines``      all engines, scripted ones and real llama.cpp servers, and their fleet file
* ``timeline``     which backend was disturbed, how, and when
* ``faults``       disturbs the engines, determined by a seed
* ``exchange``     one request as a client sees it, and how it ended
* ``clients``      every kind of client
* ``verdict``      judges the end of a request by the timeline
* ``tally``        counts how requests ended
* ``proxy``        the program under test
* ``watch``        samples during the run, and invariants of them
* ``checks``       checks at the end that nothing is left
* ``report``       the figures at the end
"""
