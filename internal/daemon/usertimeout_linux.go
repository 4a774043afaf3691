package daemon

import (
	"net"

	"golang.org/x/sys/unix"
)

// keepUserTimeout has a connection end when what was sent is not acknowledged for as
// long as a peer may take to answer a ping. gRPC sets that option itself only on a
// connection that nothing wraps.
func keepUserTimeout(conn net.Conn) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return
	}
	// A connection that does not take the option ends by keepalive, somewhat later.
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(keepaliveTimeout.Milliseconds()))
	})
}
