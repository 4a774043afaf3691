package kv

// Description describes a store.
type Description struct {
	// Kind is the implementation: "consul" or "embedded".
	Kind string
	// Leader is the address of the server that decides on writes, or "this process". It is
	// empty while there is no leader.
	Leader string
	// Servers are the addresses of all servers of the store.
	Servers []string
}

// Process is a process in the store's catalog.
type Process struct {
	// ID and Meta are taken from its Service.
	ID   string
	Meta map[string]string
	// Address is "host:port".
	Address string
	// Alive is set if the process passes all checks. Otherwise Reason names a failed check.
	Alive  bool
	Reason string
}
