"""Discovery with a real dnsmasq: real engines come and go under load, and 256 backends at once."""
