"""Hours of random faults and every kind of client at once: `scripts/test.sh soak`. Not collected by pytest.

* ``engine``       a scripted engine: the program of a process that misbehaves on order
* ``engines``      all engines, scripted ones and real llama.cpp servers, and the fleet file that lists them
* ``timeline``     which backend was disturbed, how, and when
* ``faults``       disturbs them, by a seed
* ``exchange``     one request as a client sees it, and how it ended
* ``clients``      every kind of client
* ``verdict``      may a request end like that? by the timeline
* ``tally``        how they ended, all in all
* ``proxy``        the program under test
* ``watch``        what is sampled while it runs, and what must hold of it
* ``checks``       what must be left at the end: nothing
* ``report``       the figures at the end
"""
