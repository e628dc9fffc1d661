"""Load on servers: an open-loop generator, the servers it meets, and what is read from it."""
