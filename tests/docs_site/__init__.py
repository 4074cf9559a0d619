"""The built site of the documentation, in a browser. `scripts/test.sh site` builds it first."""
