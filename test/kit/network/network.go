// Package network makes hosts on this machine for tests that cut networks: each
// has a network namespace of its own, and all of them hang on one bridge, in a
// namespace that is none of theirs either. Nothing of it is seen from the
// machine's own network. It needs root, and the programs unshare, nsenter, ip and
// nft.
package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// commandTimeout bounds one of the programs that set the network up.
const commandTimeout = time.Minute

// ownNamespace is the network of this thread, and but for those threads that are
// in a host's, of this process.
const ownNamespace = "/proc/thread-self/ns/net"

// Net is a network of hosts.
type Net struct {
	hub   *Host
	hosts []*Host
}

// Host is one of the network's hosts.
type Host struct {
	Namespace
	// Address is its IP address.
	Address string
	// holder is a process that does nothing but keep the namespace.
	holder *exec.Cmd
}

// Missing says what a network would need and is not there, nil if all is.
func Missing() error {
	var faults []error
	if os.Geteuid() != 0 {
		faults = append(faults, errors.New("network namespaces need root"))
	}
	for _, program := range []string{"unshare", "nsenter", "ip", "nft", "sleep"} {
		if _, err := exec.LookPath(program); err != nil {
			faults = append(faults, err)
		}
	}
	return errors.Join(faults...)
}

// New makes a network with a number of hosts. The caller closes it.
func New(ctx context.Context, hosts int) (_ *Net, err error) {
	n := &Net{}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.Close())
		}
	}()
	if n.hub, err = newHost(ctx, "10.77.0.254"); err != nil {
		return nil, err
	}
	if err := n.hub.run(ctx, "", "ip", "link", "add", "hub", "type", "bridge"); err != nil {
		return nil, err
	}
	if err := n.hub.up(ctx, "hub"); err != nil {
		return nil, err
	}
	for i := range hosts {
		h, err := newHost(ctx, "10.77.0."+strconv.Itoa(i+1))
		if err != nil {
			return nil, err
		}
		n.hosts = append(n.hosts, h)
		port := "port" + strconv.Itoa(i+1)
		for _, args := range [][]string{
			{"link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", strconv.Itoa(h.holder.Process.Pid)},
			{"link", "set", port, "master", "hub", "up"},
		} {
			if err := n.hub.run(ctx, "", "ip", args...); err != nil {
				return nil, err
			}
		}
		if err := h.up(ctx, "eth0"); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// newHost makes a namespace with nothing in it.
func newHost(ctx context.Context, address string) (*Host, error) {
	h := &Host{Address: address, holder: exec.Command("unshare", "--net", "sleep", "infinity")}
	// A test that is killed leaves no namespace behind.
	h.holder.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := h.holder.Start(); err != nil {
		return nil, fmt.Errorf("make host %s: %w", address, err)
	}
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	own, err := os.Readlink(ownNamespace)
	for err == nil {
		// Before unshare has done its work, the namespace is still this one.
		theirs, rerr := os.Readlink(h.namespace())
		if rerr == nil && theirs != own {
			if err = h.open(h.namespace()); err != nil {
				break
			}
			return h, nil
		}
		select {
		case <-ctx.Done():
			err = ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
	return nil, errors.Join(fmt.Errorf("make host %s: %w", address, err), h.close())
}

// Hosts returns the hosts.
func (n *Net) Hosts() []*Host { return n.hosts }

// Close takes the network away. Processes on its hosts must have ended.
func (n *Net) Close() error {
	var errs []error
	for _, h := range append(n.hosts, n.hub) {
		if h != nil {
			errs = append(errs, h.close())
		}
	}
	return errors.Join(errs...)
}

// DialContext connects to a host from the hub, which is cut off from none.
func (n *Net) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return n.hub.DialContext(ctx, network, address)
}

// Cut lets nothing pass between two hosts of different groups. What was cut
// before and is not now is whole again. A host that is in no group reaches all.
func (n *Net) Cut(ctx context.Context, groups ...[]*Host) error {
	var errs []error
	for i, group := range groups {
		var others []string
		for j, other := range groups {
			if i != j {
				for _, h := range other {
					others = append(others, h.Address)
				}
			}
		}
		for _, h := range group {
			errs = append(errs, h.refuse(ctx, others))
		}
	}
	return errors.Join(errs...)
}

// Heal makes the whole network whole again.
func (n *Net) Heal(ctx context.Context) error {
	var errs []error
	for _, h := range n.hosts {
		errs = append(errs, h.refuse(ctx, nil))
	}
	return errors.Join(errs...)
}

// Lose has a host lose so many of a hundred packets that come to it from others,
// chosen at random; 0: none any more. What is cut stays cut.
func (n *Net) Lose(ctx context.Context, h *Host, percent int) error {
	rules := "table inet loss\ndelete table inet loss\n"
	if percent > 0 {
		rules += "table inet loss { chain in { type filter hook input priority 0; iifname \"eth0\" numgen random mod 100 <= " + strconv.Itoa(percent-1) + " drop; }; }\n"
	}
	return h.run(ctx, rules, "nft", "-f", "-")
}

// refuse drops what comes from some addresses, and nothing else, without a
// notice, as when a cable is cut.
func (h *Host) refuse(ctx context.Context, others []string) error {
	rules := "table inet cut\ndelete table inet cut\n"
	if len(others) > 0 {
		rules += "table inet cut { chain in { type filter hook input priority 0; ip saddr { " + strings.Join(others, ", ") + " } drop; }; }\n"
	}
	return h.run(ctx, rules, "nft", "-f", "-")
}

// Command returns what to put before a command so that it runs on the host. The
// process that is started is the command's own.
func (h *Host) Command() []string {
	return []string{"nsenter", "--net=" + h.namespace(), "--"}
}

func (h *Host) namespace() string {
	return "/proc/" + strconv.Itoa(h.holder.Process.Pid) + "/ns/net"
}

// up gives a device the host's address.
func (h *Host) up(ctx context.Context, device string) error {
	for _, args := range [][]string{
		{"link", "set", "lo", "up"},
		{"addr", "add", h.Address + "/24", "dev", device},
		{"link", "set", device, "up"},
	} {
		if err := h.run(ctx, "", "ip", args...); err != nil {
			return err
		}
	}
	return nil
}

// run runs a program on the host.
func (h *Host) run(ctx context.Context, stdin, program string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	enter := h.Command()
	cmd := exec.CommandContext(ctx, enter[0], append(append(enter[1:], program), args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s on host %s: %w: %s", program, strings.Join(args, " "), h.Address, err, said.String())
	}
	return nil
}

func (h *Host) close() error {
	if err := h.holder.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("end host %s: %w", h.Address, err)
	}
	_ = h.holder.Wait() // it was killed
	return h.Namespace.Close()
}
