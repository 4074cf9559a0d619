"""HTTP/1.1 on both sides: bytes, framing, deadlines and back-pressure. No policy: it is given a handler."""
