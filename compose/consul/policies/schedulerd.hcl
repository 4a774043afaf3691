# What schedulerd may do in Consul, under the prefix "muster" (--prefix). It writes which node runs a task.

# All of the state is read.
key_prefix "muster/" {
  policy = "read"
}

# Its own tables, which no other daemon writes.
key_prefix "muster/assignments/" {
  policy = "write"
}
key_prefix "muster/placements/" {
  policy = "write"
}
key_prefix "muster/scheduler_fences/" {
  policy = "write"
}

# They say to other daemons that a table has changed.
key "muster/changes/placements" {
  policy = "write"
}
key "muster/changes/scheduler_fences" {
  policy = "write"
}

# Its replicas share their work out.
key_prefix "muster/members/scheduler/" {
  policy = "write"
}
key_prefix "muster/locks/scheduler/" {
  policy = "write"
}

# It enters itself in the catalog, with checks.
service "muster-schedulerd" {
  policy = "write"
}

# A session belongs to the node of the Consul agent or server that the daemon speaks to.
# Put the node's name in the place of CONSUL_NODE. Repeat the rule for each such node.
session "CONSUL_NODE" {
  policy = "write"
}
