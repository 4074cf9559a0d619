"""Our own payloads: messages that a proxy must refuse, odd ones that it must pass on, and what has to come of each."""
