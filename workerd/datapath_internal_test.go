package workerd

import (
	"net"
	"testing"
)

func TestDataPathAddressIsThatOfTheConnectionToADispatcher(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		local       net.Addr
		dispatchers []string
		want        string
	}{
		"IPv4":                  {&net.TCPAddr{IP: net.IPv4(10, 1, 2, 3), Port: 5}, nil, "10.1.2.3"},
		"IPv6":                  {&net.TCPAddr{IP: net.ParseIP("fd00::1"), Port: 5}, nil, "fd00::1"},
		"all is on loopback":    {&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 5}, []string{"127.0.0.1:7003"}, "127.0.0.1"},
		"no dispatcher is told": {&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 5}, nil, "127.0.0.1"},
	} {
		if got := dataPathAddress(test.local, test.dispatchers); got.String() != test.want {
			t.Errorf("%s: address is %s, want %s", name, got, test.want)
		}
	}
	for _, local := range []net.Addr{nil, &net.UnixAddr{Name: "/run/x"}} {
		if got := dataPathAddress(local, nil); got.IsValid() {
			t.Errorf("%v: address is %s, want none", local, got)
		}
	}
}

// A worker beside its dispatcher names the address at which other nodes reach the machine.
func TestDataPathAddressIsNotOnLoopbackIfOthersAreNot(t *testing.T) {
	t.Parallel()
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addresses {
		ip, ok := a.(*net.IPNet)
		if !ok || ip.IP.IsLoopback() || ip.IP.To4() == nil {
			continue
		}
		got := dataPathAddress(&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 5}, []string{net.JoinHostPort(ip.IP.String(), "7003")})
		if got.IsLoopback() {
			t.Errorf("address is %s, want one like %s", got, ip.IP)
		}
		return
	}
	t.Skip("this machine has only loopback addresses")
}
