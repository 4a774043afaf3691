# What orchestratord may do in Consul, under the prefix "muster" (--prefix). It writes which tasks there should be.

# All of the state is read.
key_prefix "muster/" {
  policy = "read"
}

# Its own tables, which no other daemon writes.
key_prefix "muster/tasks/" {
  policy = "write"
}
key_prefix "muster/rollouts/" {
  policy = "write"
}

# They say to other daemons that a table has changed.
key "muster/changes/rollouts" {
  policy = "write"
}

# Its replicas share their work out.
key_prefix "muster/members/orchestrator/" {
  policy = "write"
}
key_prefix "muster/locks/orchestrator/" {
  policy = "write"
}

# It enters itself in the catalog, with checks.
service "muster-orchestratord" {
  policy = "write"
}

# A session belongs to the node of the Consul agent or server that the daemon speaks to.
# Put the node's name in the place of CONSUL_NODE. Repeat the rule for each such node.
session "CONSUL_NODE" {
  policy = "write"
}
