"""HTTP/1.1 on both sides: bytes, framing, deadlines and back-pressure. The handler of requests is passed in."""
