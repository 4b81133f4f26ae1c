"""A whole cluster of real Raft cores in one thread, from one seed, with everything going wrong."""
