"""Discovery: sources find backends while the proxy runs, and the fleet is the union of what they have found."""
