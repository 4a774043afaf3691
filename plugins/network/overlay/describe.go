//go:build linux

package overlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	"github.com/musterhq/muster/plugins/network/overlay/internal/link"
	"github.com/musterhq/muster/plugins/network/overlay/internal/netns"
	"github.com/musterhq/muster/plugins/network/overlay/internal/ruleset"
	"github.com/musterhq/muster/plugins/network/overlay/internal/tunnel"
)

// probe is what the kernel can do.
type probe struct {
	vxlan, ipv6, sctp bool
	missing           []string
	// encrypted says why networks cannot be encrypted. It is nil if they can.
	encrypted error
}

// Describe says what the plugin is and whether it can work on this node.
func (p *Plugin) Describe(context.Context) (*networkv1.DescribeResponse, error) {
	d := &networkv1.DescribeResponse{Name: "overlay", Version: p.config.Version}
	found, err := p.probe()
	if err != nil {
		d.Message = err.Error()
		return d, nil
	}
	d.Healthy, d.Missing = true, found.missing
	d.Drivers = []string{DriverBridge}
	if found.vxlan {
		d.Drivers = append([]string{DriverOverlay}, d.Drivers...)
	}
	if p.forwards() {
		d.Capabilities = append(d.Capabilities, "ingress")
	} else {
		d.Missing = append(d.Missing[:len(d.Missing):len(d.Missing)], "forwarding: published ports and ways out of networks need net.ipv4.ip_forward=1 on the node")
	}
	if found.ipv6 {
		d.Capabilities = append(d.Capabilities, "ipv6")
	}
	p.describeEncryption(d)
	if found.sctp {
		d.Capabilities = append(d.Capabilities, "sctp")
	}
	return d, nil
}

// untilComplete returns a function that detects what the kernel can do each time until
// nothing is missing: modules can be loaded later.
func untilComplete(detect func() (*probe, error)) func() (*probe, error) {
	var mu sync.Mutex
	var found *probe
	return func() (*probe, error) {
		mu.Lock()
		defer mu.Unlock()
		if found != nil && len(found.missing) == 0 {
			return found, nil
		}
		var err error
		found, err = detect()
		return found, err
	}
}

// forwards reports whether the host forwards packets.
func (p *Plugin) forwards() bool {
	var value []byte
	err := p.host.Do(func() (err error) {
		value, err = os.ReadFile("/proc/sys/net/ipv4/ip_forward")
		return err
	})
	return err == nil && strings.TrimSpace(string(value)) == "1"
}

// capabilities that the plugin cannot work without, by their number.
var capabilities = map[uint]string{12: "CAP_NET_ADMIN", 21: "CAP_SYS_ADMIN"}

// detect finds out what the kernel can do by doing it, in a namespace that nothing else
// uses. It fails if the plugin cannot work at all.
func detect() (*probe, error) {
	var lacking []string
	held := heldCapabilities()
	for _, number := range []uint{12, 21} {
		if held&(1<<number) == 0 {
			lacking = append(lacking, capabilities[number])
		}
	}
	if len(lacking) > 0 {
		return nil, fmt.Errorf("the plugin needs %s: run the worker as root, or with AmbientCapabilities=%s", strings.Join(lacking, " and "), strings.Join(lacking, " "))
	}
	found := &probe{}
	err := netns.Scratch(func(space *netns.Namespace) error { return found.try(space) })
	if err != nil {
		return nil, err
	}
	return found, nil
}

func (f *probe) try(space *netns.Namespace) error {
	do := func(_ string, call func() error) error { return call() }
	f.ipv6 = true
	if _, err := os.Stat("/proc/sys/net/ipv6"); err != nil {
		f.ipv6 = false
		f.missing = append(f.missing, "ipv6: the kernel has it not, or it is disabled at boot")
	}
	if err := link.TryVeth(space); err != nil {
		return fmt.Errorf("the kernel cannot connect namespaces (module veth): %w", err)
	}
	for _, six := range []bool{false, true} {
		if six && !f.ipv6 {
			continue
		}
		t := ruleset.New(ruleset.Sandbox(six, false), space.FD(), do)
		for _, chain := range []string{"service-2", "mesh-2"} {
			t.Put(chain, ruleset.Trial(six, chain))
		}
		err := errors.Join(t.Verify(), t.Close())
		if err != nil && six {
			f.ipv6 = false
			f.missing = append(f.missing, "ipv6: nftables cannot translate addresses of IPv6: "+err.Error())
		} else if err != nil {
			return fmt.Errorf("the kernel's nftables lack what networks need (modules nf_tables, nft_chain_nat, nft_numgen, nft_fib_ipv4, nft_reject_ipv4, nft_masq): %w", err)
		}
	}
	if err := link.TryVXLAN(space); err != nil {
		f.missing = append(f.missing, "vxlan: networks of driver overlay need the kernel module vxlan: "+err.Error())
	} else {
		f.vxlan = true
	}
	if f.encrypted = tunnel.Supported(space); f.encrypted == nil && !f.vxlan {
		f.encrypted = errors.New("the kernel module vxlan is missing")
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	if err != nil {
		f.missing = append(f.missing, "sctp: no kernel module")
		return nil
	}
	f.sctp = true
	return unix.Close(fd)
}

func heldCapabilities() uint64 {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(status)) {
		if text, ok := strings.CutPrefix(line, "CapEff:"); ok {
			held, err := strconv.ParseUint(strings.TrimSpace(text), 16, 64)
			if err == nil {
				return held
			}
		}
	}
	return 0
}
