package networks_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protojson"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/kv"
)

// keyInterval is how long nodes use a key in these tests.
const keyInterval = time.Minute

// TestEncryptedNetwork has services talk over an encrypted network of two machines, while
// keys are replaced and plugins are killed. The third machine cannot encrypt.
func TestEncryptedNetwork(t *testing.T) {
	m := startWith(t, map[string][]string{
		"one":   {"MUSTER_NETWORK_KEY_INTERVAL=" + keyInterval.String()},
		"two":   {"MUSTER_NETWORK_KEY_INTERVAL=" + keyInterval.String()},
		"three": {"MUSTER_NETWORK_ENCRYPTED_PORT=0"},
	})
	m.network(&musterv1.NetworkSpec{Name: "open"})
	m.network(&musterv1.NetworkSpec{Name: "closed", Encrypted: true})
	web := m.run(spread(answers("web", 2, "closed")), 2)
	for _, task := range web {
		if task.NodeId == m.Nodes["three"] {
			t.Errorf("task %s runs on the node that cannot encrypt", task.Name)
		}
	}
	clients := m.run(spread(answers("client", 2, "closed")), 2)
	plain := m.run(spread(answers("plain", 2, "open")), 2)

	t.Run("the node that cannot encrypt is named with the reason", func(t *testing.T) {
		spec := answers("there", 1, "closed")
		spec.Task.Placement = &musterv1.Placement{Constraints: []string{"node.id==" + m.Nodes["three"]}}
		_, err := m.Create(t.Context(), spec)
		ok(t, err)
		const want = `network closed: network plugin for driver "overlay" lacks the capability "encrypted"`
		m.eventually("the reason is told", func(ctx context.Context) error {
			tasks, err := m.Tasks(ctx, "there")
			if err != nil {
				return err
			}
			for _, task := range tasks {
				if strings.Contains(task.Status.GetMessage(), want) || strings.Contains(task.Status.GetError(), want) {
					return nil
				}
			}
			return fmt.Errorf("no task says %q: %v", want, tasks)
		})
		ok(t, m.Remove(t.Context(), "there"))
	})

	t.Run("no host on the way can read", func(t *testing.T) {
		s := sniff(t, m)
		// Answers name their tasks. That of the open network comes last: what was sent before
		// has been seen by then.
		for _, way := range []struct {
			tasks map[string]*musterv1.Task
			to    map[string]*musterv1.Task
			id    string
			seen  bool
		}{{clients, web, m.id("closed"), false}, {plain, plain, m.id("open"), true}} {
			for _, from := range way.tasks {
				for _, to := range way.to {
					if from.NodeId == to.NodeId {
						continue
					}
					at := net.JoinHostPort(addresses(map[string]*musterv1.Task{"": to}, way.id)[0], port)
					m.eventually("the task is reached", func(ctx context.Context) error {
						_, err := ask(ctx, m.inside(from).client(false), at)
						return err
					})
					if way.seen {
						m.eventually("an answer in the clear is seen", func(context.Context) error { return s.saw(to.Id) })
					} else if s.saw(to.Id) == nil {
						t.Errorf("an answer of task %s was seen on the way", to.Name)
					}
				}
			}
		}
		for _, to := range web {
			if s.saw(to.Id) == nil {
				t.Errorf("an answer of task %s was seen on the way", to.Name)
			}
		}
	})

	t.Run("no request fails while keys are replaced and workers and plugins are killed", func(t *testing.T) {
		before := m.keys()
		l := m.loadWithin("web", clients)
		for _, w := range []string{"one", "two"} {
			ok(t, m.Process(w).Kill())
			ok(t, m.StartNode(w))
		}
		m.eventually("all nodes are ready", m.Ready)
		plugins, err := m.plugins()
		ok(t, err)
		for _, p := range plugins {
			// What carries the packets is a process of its own.
			if !slices.Contains(p.Command, "tunnel") {
				ok(t, syscall.Kill(p.PID, syscall.SIGKILL))
			}
		}
		m.eventually("both nodes have other keys", func(context.Context) error {
			now := m.keys()
			for _, name := range []string{"one", "two"} {
				if len(before[name]) == 0 || now[name] == before[name] {
					return fmt.Errorf("node %s has the key %x as before", name, now[name])
				}
			}
			return nil
		})
		if err := l.end(); err != nil {
			t.Errorf("of %d requests some failed: %v", l.asked.Load(), err)
		}
		t.Logf("%d requests", l.asked.Load())
	})

	t.Run("private keys are on their nodes only", func(t *testing.T) {
		private, public := m.privateKeys(t), m.keys()
		places := map[string][]byte{}
		ok(t, m.Do(t.Context(), func(ctx context.Context, c musterv1.ControlServiceClient) error {
			for _, id := range m.Nodes {
				resp, err := c.GetNode(ctx, &musterv1.GetNodeRequest{Node: id})
				if err != nil {
					return err
				}
				places["the API, node "+id] = []byte(protojson.Format(resp))
			}
			return nil
		}))
		pairs, _, err := m.Consul.KV(t).List(t.Context(), "", kv.ListOptions{})
		ok(t, err)
		for _, pair := range pairs {
			places["Consul, "+pair.Key] = pair.Value
		}
		all, err := m.Machine()
		ok(t, err)
		for _, p := range all {
			places[fmt.Sprint("the arguments and the environment of process ", p.PID)] = []byte(strings.Join(append(p.Command, p.Env...), "\n"))
		}
		// That includes the logs, and what the worker keeps.
		ok(t, filepath.WalkDir(m.Dir(), func(path string, d os.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() && d.Name() != keysFile && filepath.Dir(path) != filepath.Dir(m.Binary()) {
				places[path], err = os.ReadFile(path)
			}
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}))
		find := func(key []byte) (found []string) {
			for place, text := range places {
				for _, form := range []string{string(key), base64.StdEncoding.EncodeToString(key), hex.EncodeToString(key)} {
					if bytes.Contains(text, []byte(form)) {
						found = append(found, place)
					}
				}
			}
			return found
		}
		for _, key := range private {
			if found := find(key); len(found) > 0 {
				t.Errorf("a private key is in %q", found)
			}
		}
		// A private key would be found where public ones are.
		found := strings.Join(find([]byte(public["one"])), " ")
		for _, place := range []string{"the API", "raft"} {
			if !strings.Contains(found, place) {
				t.Errorf("a public key is in %q, and not in %s: the test has lost its object", found, place)
			}
		}
	})
}

// TestEncryptedNetworkIsRefusedWhereNoNodeCan checks what the API says.
func TestEncryptedNetworkIsRefusedWhereNoNodeCan(t *testing.T) {
	env := map[string][]string{}
	for _, name := range workers {
		env[name] = []string{"MUSTER_NETWORK_ENCRYPTED_PORT=0"}
	}
	m := startWith(t, env)
	err := m.Do(t.Context(), func(ctx context.Context, c musterv1.ControlServiceClient) error {
		_, err := c.CreateNetwork(ctx, &musterv1.CreateNetworkRequest{Spec: &musterv1.NetworkSpec{Name: "closed", Encrypted: true}})
		return err
	})
	if want := "no node can encrypt networks: it is turned off on the node (MUSTER_NETWORK_ENCRYPTED_PORT=0)"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("CreateNetwork = %v, want an error with %q", err, want)
	}
}

// spread has each task of a service run on a node of its own.
func spread(spec *musterv1.ServiceSpec) *musterv1.ServiceSpec {
	spec.Task.Placement = &musterv1.Placement{MaxReplicas: 1}
	return spec
}

// loadWithin puts load on a service through its virtual address.
func (m *machines) loadWithin(service string, clients map[string]*musterv1.Task) *load {
	m.t.Helper()
	ctx, cancel := context.WithCancel(m.t.Context())
	l := &load{cancel: cancel}
	for _, task := range clients {
		from := m.inside(task)
		var virtual string
		m.eventually(service+" has an address", func(ctx context.Context) (err error) {
			virtual, err = from.address(ctx, service)
			return err
		})
		for _, keep := range []bool{true, false} {
			l.start(ctx, from, net.JoinHostPort(virtual, port), keep)
		}
	}
	return l
}

// keys returns the public keys of the nodes, by the workers' names.
func (m *machines) keys() map[string]string {
	keys := map[string]string{}
	err := m.Do(m.t.Context(), func(ctx context.Context, c musterv1.ControlServiceClient) error {
		for name, id := range m.Nodes {
			resp, err := c.GetNode(ctx, &musterv1.GetNodeRequest{Node: id})
			if err != nil {
				return err
			}
			keys[name] = string(resp.GetNode().GetDescription().GetDataPath().GetPublicKey())
		}
		return nil
	})
	ok(m.t, err)
	return keys
}

// keysFile is the file in which a node keeps its private keys.
const keysFile = "encryption.json"

// privateKeys returns the private keys of all nodes.
func (m *machines) privateKeys(t *testing.T) (keys [][]byte) {
	t.Helper()
	ok(t, filepath.WalkDir(m.Dir(), func(path string, d os.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || d.Name() != keysFile {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		text, err := os.ReadFile(path)
		for part := range strings.SplitSeq(string(text), `"`) {
			if key, err := base64.StdEncoding.DecodeString(part); err == nil && len(key) == 32 {
				keys = append(keys, key)
			}
		}
		return err
	}))
	if len(keys) < 2 {
		t.Fatalf("%d private keys found, want two at least", len(keys))
	}
	return keys
}

// sniffer keeps what passes the link of a machine.
type sniffer struct {
	mu   sync.Mutex
	seen [][]byte
}

// sniff listens on the links of the first two machines until the test ends.
func sniff(t *testing.T, m *machines) *sniffer {
	t.Helper()
	s := &sniffer{}
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	for _, name := range []string{"one", "two"} {
		fd, err := m.hosts[name].Packets("eth0")
		ok(t, err)
		ok(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}))
		ok(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20))
		done.Go(func() {
			defer func() { _ = unix.Close(fd) }()
			for buffer := make([]byte, 1<<16); ctx.Err() == nil; {
				n, _, err := unix.Recvfrom(fd, buffer, 0)
				if err != nil {
					continue
				}
				s.mu.Lock()
				s.seen = append(s.seen, bytes.Clone(buffer[:n]))
				s.mu.Unlock()
			}
		})
	}
	t.Cleanup(func() {
		cancel()
		done.Wait()
	})
	return s
}

// saw returns nil if a text passed.
func (s *sniffer) saw(text string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.seen {
		if bytes.Contains(p, []byte(text)) {
			return nil
		}
	}
	return fmt.Errorf("%q is in none of %d packets", text, len(s.seen))
}
