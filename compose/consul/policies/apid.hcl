# What apid may do in Consul, under the prefix "muster" (--prefix). It writes what users want.

# All of the state is read.
key_prefix "muster/" {
  policy = "read"
}

# Its own tables, which no other daemon writes.
key_prefix "muster/services/" {
  policy = "write"
}
key_prefix "muster/specs/" {
  policy = "write"
}
key_prefix "muster/names/" {
  policy = "write"
}
key_prefix "muster/nodes/" {
  policy = "write"
}
key_prefix "muster/clusters/" {
  policy = "write"
}
key_prefix "muster/configs/" {
  policy = "write"
}
key_prefix "muster/sealing/" {
  policy = "write"
}
key_prefix "muster/secrets/" {
  policy = "write"
}
key_prefix "muster/sealedblobs/" {
  policy = "write"
}
key_prefix "muster/stacks/" {
  policy = "write"
}
key_prefix "muster/stackblobs/" {
  policy = "write"
}
key_prefix "muster/networks/" {
  policy = "write"
}
key_prefix "muster/blobs/" {
  policy = "write"
}
key_prefix "muster/authorities/" {
  policy = "write"
}
key_prefix "muster/tokens/" {
  policy = "write"
}

# They say to other daemons that a table has changed.
key "muster/changes/services" {
  policy = "write"
}
key "muster/changes/specs" {
  policy = "write"
}
key "muster/changes/names" {
  policy = "write"
}
key "muster/changes/nodes" {
  policy = "write"
}
key "muster/changes/clusters" {
  policy = "write"
}
key "muster/changes/configs" {
  policy = "write"
}
key "muster/changes/sealing" {
  policy = "write"
}
key "muster/changes/secrets" {
  policy = "write"
}
key "muster/changes/sealedblobs" {
  policy = "write"
}
key "muster/changes/stacks" {
  policy = "write"
}
key "muster/changes/stackblobs" {
  policy = "write"
}
key "muster/changes/networks" {
  policy = "write"
}
key "muster/changes/blobs" {
  policy = "write"
}
key "muster/changes/authorities" {
  policy = "write"
}
key "muster/changes/tokens" {
  policy = "write"
}

# Its replicas share their work out.
key_prefix "muster/members/apid/" {
  policy = "write"
}
key_prefix "muster/locks/apid/" {
  policy = "write"
}

# It enters itself in the catalog, with checks, and shows which other daemons there are.
service "muster-apid" {
  policy = "write"
}
service "muster-orchestratord" {
  policy = "read"
}
service "muster-allocatord" {
  policy = "read"
}
service "muster-schedulerd" {
  policy = "read"
}
service "muster-dispatcherd" {
  policy = "read"
}

# A session belongs to the node of the Consul agent or server that the daemon speaks to.
# Put the node's name in the place of CONSUL_NODE. Repeat the rule for each such node.
session "CONSUL_NODE" {
  policy = "write"
}

# Processes in the catalog are shown with the nodes that they are registered at.
node "CONSUL_NODE" {
  policy = "read"
}
