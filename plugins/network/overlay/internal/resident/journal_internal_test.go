//go:build linux

package resident

import (
	"bufio"
	"bytes"
	"maps"
	"os"
	"slices"
	"testing"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	"github.com/musterhq/muster/plugins/sdk/networksdk"
)

// loaded returns a service that has read the journal in a directory, and the error of it.
func loaded(t *testing.T, dir string) (*service, error) {
	t.Helper()
	s, err := newService(Config{Dir: dir, Host: OwnSpace}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.journal.close()
		_ = s.host.Close()
	})
	return s, s.load(t.Context(), networksdk.NewServer(s))
}

func entries(messages ...proto.Message) []byte {
	var text bytes.Buffer
	out := bufio.NewWriter(&text)
	for _, m := range messages {
		if err := writeEntry(out, m); err != nil {
			panic(err)
		}
	}
	if err := out.Flush(); err != nil {
		panic(err)
	}
	return text.Bytes()
}

var (
	exampleApply = &networkv1.ApplyRequest{
		Complete: true, Node: &networkv1.Node{Id: "n"},
		Networks: []*networkv1.Network{{Id: "net", Name: "net", Driver: "overlay", Subnets: []string{"10.64.0.0/16"}}},
		Services: []*networkv1.Service{{NetworkId: "net", Id: "web", Name: "web", VirtualIps: []string{"10.64.0.2"}}},
	}
	exampleAttach = &networkv1.AttachRequest{
		TaskId: "a", TaskName: "a", ServiceId: "web", ServiceName: "web",
		Attachments: []*networkv1.Attachment{{NetworkId: "net", Addresses: []string{"10.64.1.2"}}},
	}
)

// A journal may be anything: what is valid at its beginning is kept, and the rest is cut
// off, so that what is appended can be read.
func FuzzJournal(f *testing.F) {
	whole := entries(exampleApply, exampleAttach)
	f.Add(whole)
	f.Add(whole[:len(whole)-3])
	f.Add(append(slices.Clone(whole), 'A', 0xff, 0xff, 0xff, 0xff, 0x7f))
	f.Add(entries(exampleApply, exampleAttach, &networkv1.DetachRequest{TaskId: "a"}))
	f.Add(entries(exampleAttach))
	f.Add([]byte("X"))
	f.Fuzz(func(t *testing.T, content []byte) {
		dir := t.TempDir()
		path := Config{Dir: dir}.path(journalFile)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		first, err := loaded(t, dir)
		if kept, read := os.ReadFile(path); read != nil || !bytes.HasPrefix(content, kept) || err == nil && len(kept) != len(content) {
			t.Fatalf("%d of %d bytes are kept after %v: %v", len(kept), len(content), err, read)
		}
		first.mu.Lock()
		first.record(&networkv1.DetachRequest{TaskId: "another"})
		first.mu.Unlock()
		second, err := loaded(t, dir)
		if err != nil {
			t.Fatalf("what was kept cannot be read: %v", err)
		}
		if !maps.EqualFunc(first.tasks, second.tasks, func(a, b *networkv1.AttachRequest) bool { return proto.Equal(a, b) }) ||
			!slices.Equal(slices.Sorted(maps.Keys(first.networks)), slices.Sorted(maps.Keys(second.networks))) {
			t.Error("the second reading has another result than the first")
		}
	})
}

// What another process sends under any name closes nothing and opens nothing.
func FuzzHandover(f *testing.F) {
	f.Add("net 4 4026531840")
	f.Add("net 4")
	f.Add("")
	f.Add("net 99999999999999999999 1")
	f.Fuzz(func(t *testing.T, name string) {
		if network, s, err := readSockets(name, nil); err == nil {
			t.Errorf("%q without sockets is network %q: %v", name, network, s)
		}
	})
}

func TestJournalKeepsWhatFollowsTornEntry(t *testing.T) {
	dir := t.TempDir()
	path := Config{Dir: dir}.path(journalFile)
	if err := os.WriteFile(path, append(entries(exampleApply), "A\x10torn"...), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := loaded(t, dir)
	if err == nil {
		t.Error("a torn entry was read")
	}
	s.mu.Lock()
	s.record(exampleAttach)
	s.mu.Unlock()
	if s, err = loaded(t, dir); err != nil || s.tasks["a"] == nil || len(s.networks) != 1 {
		t.Errorf("after the torn entry %d networks and %d tasks are known: %v", len(s.networks), len(s.tasks), err)
	}
}
