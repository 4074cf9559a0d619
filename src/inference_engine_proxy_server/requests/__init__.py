"""What a request asks for: destination, model, prompt, and names of backend-local resources. No I/O."""
