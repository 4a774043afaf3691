# What dispatcherd may do in Consul, under the prefix "muster" (--prefix). It writes what workers say.

# All of the state is read.
key_prefix "muster/" {
  policy = "read"
}

# Its own tables are written; nobody else writes them.
key_prefix "muster/nodestates/" {
  policy = "write"
}
key_prefix "muster/statuses/" {
  policy = "write"
}

# Its replicas share their work out.
key_prefix "muster/members/dispatcher/" {
  policy = "write"
}
key_prefix "muster/locks/dispatcher/" {
  policy = "write"
}

# It enters itself in the catalog, with checks, and looks whom else there is.
service_prefix "muster-" {
  policy = "read"
}
service "muster-dispatcherd" {
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
