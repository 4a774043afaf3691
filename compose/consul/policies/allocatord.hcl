# What allocatord may do in Consul, under the prefix "muster" (--prefix). It writes addresses and ports.

# All of the state is read.
key_prefix "muster/" {
  policy = "read"
}

# Its own tables, which no other daemon writes.
key_prefix "muster/endpoints/" {
  policy = "write"
}
key_prefix "muster/networkstates/" {
  policy = "write"
}
key_prefix "muster/blocks/" {
  policy = "write"
}
key_prefix "muster/allocator_fences/" {
  policy = "write"
}

# They say to other daemons that a table has changed.
key "muster/changes/endpoints" {
  policy = "write"
}
key "muster/changes/networkstates" {
  policy = "write"
}
key "muster/changes/blocks" {
  policy = "write"
}
key "muster/changes/allocator_fences" {
  policy = "write"
}

# Its replicas share their work out.
key_prefix "muster/members/allocator/" {
  policy = "write"
}
key_prefix "muster/locks/allocator/" {
  policy = "write"
}

# It enters itself in the catalog, with checks.
service "muster-allocatord" {
  policy = "write"
}

# A session belongs to the node of the Consul agent or server that the daemon speaks to.
# Put the node's name in the place of CONSUL_NODE. Repeat the rule for each such node.
session "CONSUL_NODE" {
  policy = "write"
}
