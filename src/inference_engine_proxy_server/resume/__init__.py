"""Continues a broken stream on another backend, so that its client sees a pause and nothing else.

::

    events.py            event streams: splits, reads and writes their events
    event_form.py        reads many events of a stream at once that differ in nothing but their text
    members.py           reads the members of a request
    rules.py             which streams are resumed, and why the others are not
    transcript.py        what a stream has delivered to its client
    seam.py              rewrites the events of a continuation, so that they continue the stream
    counts.py            usage and timings of a stream and its continuation together
    dialect.py           what differs from API to API
    dialects/            completions, messages and responses, chosen by path
    resumable_stream.py  the receiver of the replies: delivers whole events, and keeps the transcript

    assembly_rules.py    which requests without ``stream`` are sent as streams
    assembly.py          assembles the reply from the events
    assembled_reply.py   the receiver of the events, in place of the client

``dispatch/stream_relay.py`` decides when to resume, and chooses the backend.
"""
