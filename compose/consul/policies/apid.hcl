# What apid may do in Consul, under the prefix "muster" (--prefix). It writes what users want.

# All of the state is read.
key_prefix "muster/" {
  policy = "read"
}

# Its own tables are written; nobody else writes them.
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
key_prefix "muster/authorities/" {
  policy = "write"
}
key_prefix "muster/tokens/" {
  policy = "write"
}

# Its replicas share their work out.
key_prefix "muster/members/apid/" {
  policy = "write"
}
key_prefix "muster/locks/apid/" {
  policy = "write"
}

# It enters itself in the catalog, with checks, and looks whom else there is.
service_prefix "muster-" {
  policy = "read"
}
service "muster-apid" {
  policy = "write"
}

# A session belongs to a node of Consul, whichever agent the daemon speaks to.
session_prefix "" {
  policy = "write"
}
node_prefix "" {
  policy = "read"
}
agent_prefix "" {
  policy = "read"
}
