//! Identify data, log pages and lists that a peer answers, made sane before SPDK reads them.
