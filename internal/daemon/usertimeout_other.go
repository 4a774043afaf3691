//go:build !linux

package daemon

import "net"

// keepUserTimeout does nothing where there is no such option.
func keepUserTimeout(net.Conn) {}
