package daemon

import (
	"net"

	"golang.org/x/sys/unix"
)

// keepUserTimeout ends a connection when sent data is not acknowledged within the time that
// a peer has to answer a ping. gRPC sets that option itself only on a connection that
// nothing has wrapped.
func keepUserTimeout(conn net.Conn) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return
	}
	// A connection without the option ends by keepalive, somewhat later.
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(keepaliveTimeout.Milliseconds()))
	})
}
