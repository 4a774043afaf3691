package pluginhost

// SocketsDir returns where the sockets of a state directory's plugins are.
func SocketsDir(stateDir string) string { return socketsDirs(stateDir)[0] }

// SamePath is a path to an open file, for a process to start.
var SamePath = samePath
