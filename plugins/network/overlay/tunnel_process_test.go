//go:build linux

package overlay_test

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	"github.com/musterhq/muster/plugins/network/overlay"
	"github.com/musterhq/muster/plugins/network/overlay/internal/netns"
)

// pair is two machines on an encrypted network, with a client on the first and a server on
// the second.
type pair struct {
	t        *testing.T
	machines []*machine
	client   *endpoint
	target   string
	logged   *observer.ObservedLogs
}

// newPair returns two machines. What the second logs is observed.
func newPair(t *testing.T) *pair {
	t.Helper()
	_, machines := newMachines(t, 2)
	core, logged := observer.New(zap.DebugLevel)
	machines[1].log = zap.New(core)
	machines[1].restart()
	join(machines, "net", 4098, encrypted, introduce(t, machines))
	p := &pair{t: t, machines: machines, target: first(at(2, 2)) + ":80", logged: logged}
	machines[1].attach("server", "net="+at(2, 2)).serve(80)
	p.client = machines[0].attach("client", "net="+at(1, 2))
	mustGet(t, p.client.space, p.target)
	// A complete set, as every worker sends it, has the plugin remove what is not needed.
	for i, m := range machines {
		r := joinRequest(machines, i, "net", 4098, encrypted, introduce(t, machines))
		r.Complete = true
		m.apply(r)
	}
	if machines[1].process() == 0 {
		t.Skip("the kernel has WireGuard: there is no process")
	}
	return p
}

// reached waits until the server answers.
func (p *pair) reached() {
	p.t.Helper()
	repeat(p.t, func() error {
		_, _, err := get(p.client.space, p.target)
		return err
	})
}

// socketsOf returns copies of the UDP sockets of a process. They stay open when it ends.
func socketsOf(t *testing.T, pid int) (files []*os.File) {
	t.Helper()
	process, err := unix.PidfdOpen(pid, 0)
	must(t, err)
	defer func() { _ = unix.Close(process) }()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	must(t, err)
	for _, e := range entries {
		target, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, e.Name()))
		if err != nil || !strings.HasPrefix(target, "socket:") {
			continue
		}
		var number int
		_, err = fmt.Sscan(e.Name(), &number)
		must(t, err)
		fd, err := unix.PidfdGetfd(process, number, 0)
		must(t, err)
		if kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil || kind != unix.SOCK_DGRAM {
			must(t, unix.Close(fd))
			continue
		}
		files = append(files, os.NewFile(uintptr(fd), target))
	}
	if len(files) == 0 {
		t.Fatal("the process has no UDP sockets")
	}
	t.Cleanup(func() {
		for _, f := range files {
			_ = f.Close()
		}
	})
	return files
}

// TestEncryptedPortStaysWhenItsProcessEnds kills a process whose sockets live longer than
// its device.
func TestEncryptedPortStaysWhenItsProcessEnds(t *testing.T) {
	p := newPair(t)
	m := p.machines[1]
	port, before := m.describe(t).GetEncryptedPort(), m.process()
	held := socketsOf(t, before)
	must(t, syscall.Kill(before, syscall.SIGKILL))
	repeat(t, func() error {
		now := m.process()
		if p.logged.FilterMessage("waiting for the UDP port of encrypted networks, which is in use").Len() > 0 || now != 0 && now != before {
			return nil
		}
		return errors.New("the device is not made again")
	})
	for _, f := range held {
		must(t, f.Close())
	}
	p.reached()
	if now := m.describe(t).GetEncryptedPort(); now != port {
		t.Errorf("the node has port %d, want %d as before", now, port)
	}
}

// TestEncryptedPortChangesIfAnotherProgramKeepsIt checks that peers find the new port without
// being told.
func TestEncryptedPortChangesIfAnotherProgramKeepsIt(t *testing.T) {
	p := newPair(t)
	m := p.machines[1]
	port, before := m.describe(t).GetEncryptedPort(), m.process()
	socketsOf(t, before)
	must(t, syscall.Kill(before, syscall.SIGKILL))
	repeat(t, func() error {
		if m.describe(t).GetEncryptedPort() == port {
			return fmt.Errorf("the node has port %d, which another program has", port)
		}
		return nil
	})
	p.reached()
}

// TestTunnelIsMadeAgainWhenItsNamespaceIsLost removes the name of the tunnel's namespace, as
// a program that cleans up /run/netns does.
func TestTunnelIsMadeAgainWhenItsNamespaceIsLost(t *testing.T) {
	p := newPair(t)
	m := p.machines[1]
	before := m.process()
	must(t, netns.Mounts{}.Remove(m.plugin.PathOfTunnel(m.node.GetId())))
	repeat(t, func() error {
		if now := m.process(); now == before || now == 0 {
			return fmt.Errorf("process %d runs the device, want another one than %d", now, before)
		}
		return nil
	})
	p.reached()
}

// TestTunnelProcessEndsWithItsNamespace removes the name of the tunnel's namespace, or the
// device's socket, while no plugin runs.
func TestTunnelProcessEndsWithItsNamespace(t *testing.T) {
	for name, remove := range map[string]func(*machine) error{
		"namespace": func(m *machine) error { return netns.Mounts{}.Remove(m.plugin.PathOfTunnel(m.node.GetId())) },
		"socket": func(m *machine) error {
			return os.Remove("/var/run/wireguard/mu-" + overlay.Short(m.node.GetId()) + "-0.sock")
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t)
			m := p.machines[1]
			must(t, m.plugin.Close())
			must(t, remove(m))
			repeat(t, func() error {
				if now := m.process(); now != 0 {
					return fmt.Errorf("process %d continues", now)
				}
				return nil
			})
			m.start()
			r := joinRequest(p.machines, 1, "net", 4098, encrypted, introduce(t, p.machines))
			r.Complete = true
			m.apply(r)
			p.reached()
		})
	}
}

// TestSocketsOfKilledProcessesAreRemoved leaves sockets of devices of other nodes behind.
func TestSocketsOfKilledProcessesAreRemoved(t *testing.T) {
	p := newPair(t)
	m := p.machines[0]
	leave := func(name string, old, close bool) string {
		t.Helper()
		path := "/var/run/wireguard/" + name + ".sock"
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		must(t, err)
		l.SetUnlinkOnClose(false)
		t.Cleanup(func() { _ = errors.Join(l.Close(), os.Remove(path)) })
		if close {
			must(t, l.Close())
		}
		if old {
			hourAgo := time.Now().Add(-time.Hour)
			must(t, os.Chtimes(path, hourAgo, hourAgo))
		}
		return path
	}
	id := overlay.Short(t.Name() + m.node.GetId())
	stale := leave("mu-"+id+"-0", true, true)
	kept := []string{leave("mu-"+id+"-1", true, false), leave("mu-"+id+"-2", false, true), leave("wg-"+id, true, true)}
	_, err := m.plugin.Audit(t.Context())
	must(t, err)
	if _, err := os.Lstat(stale); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket of a process that is gone is left: %v", err)
	}
	for _, path := range kept {
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("a socket was removed that is in use, new, or of another program: %v", err)
		}
	}
	p.reached()
}

// TestSilentTunnelProcessIsReplaced stops a process, which no longer answers then.
func TestSilentTunnelProcessIsReplaced(t *testing.T) {
	p := newPair(t)
	m := p.machines[1]
	before := m.process()
	must(t, syscall.Kill(before, syscall.SIGSTOP))
	// A process that the test leaves behind would never end.
	t.Cleanup(func() { _ = syscall.Kill(before, syscall.SIGKILL) })
	done := make(chan error, 1)
	go func() {
		_, err := m.plugin.Audit(t.Context())
		done <- err
	}()
	select {
	case err := <-done:
		must(t, err)
	case <-time.After(3 * patience):
		t.Fatal("the audit waits for the process")
	}
	p.reached()
	if now := m.process(); now == before {
		t.Error("the process was not replaced")
	}
}

// TestNodeKeepsItsKeyWhenAnotherClaimsIt lets a node claim a key that another one has already.
// The names of nodes would decide for the claimant.
func TestNodeKeepsItsKeyWhenAnotherClaimsIt(t *testing.T) {
	p := newPair(t)
	r := joinRequest(p.machines, 0, "net", 4098, encrypted, introduce(t, p.machines))
	claimant := proto.CloneOf(r.GetPeers()[0])
	claimant.NodeId, claimant.DataPathAddress, claimant.Blocks = "aaa", "192.0.2.77", blocks(7)
	p.machines[0].apply(&networkv1.ApplyRequest{Peers: []*networkv1.Peer{claimant}})
	mustGet(t, p.client.space, p.target)
}

func TestDamagedKeysAreRefused(t *testing.T) {
	needRoot(t)
	const one, two = `"MTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTI="`, `"MTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTM="`
	const none = `"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="`
	for text, valid := range map[string]bool{
		`{"port":4850,"keys":[{"slot":0,"private":` + one + `}]}`:                                  true,
		`{"port":4850,"keys":[{"slot":1,"private":` + one + `},{"slot":0,"private":` + two + `}]}`: true,
		`{"port":4850,"keys":[{"slot":0,"private":` + one + `},{"slot":0,"private":` + two + `}]}`: false,
		`{"port":4850,"keys":[{"slot":0,"private":` + one + `},{"slot":1,"private":` + one + `}]}`: false,
		`{"port":4850,"keys":[{"slot":2,"private":` + one + `}]}`:                                  false,
		`{"port":4850,"keys":[{"slot":-1,"private":` + one + `}]}`:                                 false,
		`{"port":4850,"keys":[{"slot":0,"private":` + none + `}]}`:                                 false,
		`{"port":4850,"keys":[{"slot":0}]}`:                                                        false,
		`{"port":4850,"keys":[null]}`:                                                              false,
		`{"port":4850,"keys":[]}`:                                                                  false,
		`{"port":0,"keys":[{"slot":0,"private":` + one + `}]}`:                                     false,
		`{"port":65535,"keys":[{"slot":0,"private":` + one + `}]}`:                                 false,
		`{}`: false,
	} {
		dir := t.TempDir()
		must(t, os.WriteFile(filepath.Join(dir, "encryption.json"), []byte(text), 0o600))
		p, err := overlay.New(overlay.Config{StateDir: dir, Namespaces: t.TempDir()})
		if err == nil {
			must(t, p.Close())
		}
		switch {
		case valid && err != nil:
			t.Errorf("%s: %v", text, err)
		case !valid && (err == nil || !strings.Contains(err.Error(), "encryption.json is damaged: remove it")):
			t.Errorf("%s: %v, want an error that names the file and the fix", text, err)
		}
	}
}
