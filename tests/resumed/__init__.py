"""Long proofs of resumed streams and assembled replies, while real llama.cpp servers are killed, frozen and drained."""
