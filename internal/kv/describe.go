package kv

// Description is what a store tells of itself.
type Description struct {
	// Kind is the implementation: "consul" or "embedded".
	Kind string
	// Leader decides on writes: a server's address, or "this process".
	// Empty: there is no leader at this moment.
	Leader string
	// Servers are the addresses of all servers that the store is made of.
	Servers []string
}

// Process is a process in the store's catalog.
type Process struct {
	// ID and Meta are those of its Service.
	ID   string
	Meta map[string]string
	// Address is "host:port".
	Address string
	// Alive says that it passes all of its checks. Reason tells which it does not.
	Alive  bool
	Reason string
}
