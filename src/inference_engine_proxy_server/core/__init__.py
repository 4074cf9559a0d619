"""What happens to a request, and what is known of the backends: decided here, without touching a socket."""
