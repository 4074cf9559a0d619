"""HTTP messages that the proxy must refuse or forward, each with its expected result."""
