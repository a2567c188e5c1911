"""A server and a worker on this machine: `albat up`, `albat down`."""
