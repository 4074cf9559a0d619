"""Settings, fleet file and keys of clients: reads them, validates them, and explains what is wrong."""
