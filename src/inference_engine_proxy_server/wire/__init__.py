"""HTTP/1.1 on both sides. Knows bytes, framing, deadlines and back-pressure, and no policy: it is given a handler."""
