package network

import (
	"fmt"
	"math/rand/v2"
	"net"
)

// Loopback returns an address of this machine of a test's own: ports that are free there
// now are not taken by another test, nor by connections that anybody makes.
func Loopback() string {
	return net.IPv4(127, byte(1+rand.IntN(254)), byte(rand.IntN(256)), byte(1+rand.IntN(254))).String()
}

// FreeAddresses returns addresses at an IP address of this machine without a
// listener, each another one.
func FreeAddresses(ip string, n int) ([]string, error) {
	addresses := make([]string, n)
	for i := range addresses {
		l, err := net.Listen("tcp", net.JoinHostPort(ip, "0"))
		if err != nil {
			return nil, fmt.Errorf("find a free port: %w", err)
		}
		defer func() { _ = l.Close() }()
		addresses[i] = l.Addr().String()
	}
	return addresses, nil
}

// FreeAddress returns one of this machine's own, for a test.
func FreeAddress(t interface {
	Helper()
	Fatal(args ...any)
}) string {
	t.Helper()
	free, err := FreeAddresses(Loopback(), 1)
	if err != nil {
		t.Fatal(err)
	}
	return free[0]
}
