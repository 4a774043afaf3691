// Package wire is what both sides of the plugin contracts agree on beneath
// the protocol itself: the names by which a worker and a plugin find each
// other, and how an error keeps its meaning on the way from the one to the
// other. Executors and network plugins share it.
//
// The worker imports it for its side, the plugin SDK for the plugin's. It
// knows nothing of tasks and keeps no state.
package wire

const (
	// ProtocolVersion is the newest version of the plugin contracts that
	// this package speaks. The handshake settles on the highest version that
	// both sides know.
	ProtocolVersion = 1
	// CookieKey is the environment variable that tells a plugin, also a network
	// plugin, that a worker started it. It is a courtesy to people who start a plugin
	// by hand, and no secret.
	CookieKey = "MUSTER_EXECUTOR"
	// CookieValue is what the variable holds.
	CookieValue = "d1f7c2f0-muster-executor"
	// StateDirKey is the environment variable in which a worker names a
	// directory that is the executor's own and outlives its process. The
	// worker makes the directory, and never looks into it.
	StateDirKey = "MUSTER_STATE_DIR"
	// MachinePIDKey is the environment variable in which a worker tells its network
	// plugins the id of a process that has the machine's network and mounts. It is set if
	// the worker itself has others, as in a container.
	MachinePIDKey = "MUSTER_MACHINE_PID"
)
