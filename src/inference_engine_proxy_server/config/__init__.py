"""What the operator says: every setting, the fleet, the keys of clients; read, checked, and explained when wrong."""
