//go:build linux

package overlay_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	mdns "github.com/miekg/dns"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	"github.com/musterhq/muster/plugins/internal/durable"
)

// namesProcess returns the id of the process that answers for names, and what waits for
// its end.
func (m *machine) namesProcess() (pid int, ended func() error, err error) {
	conn, err := durable.Dial(context.Background(), filepath.Join(m.dir, "state", "names"), "control", "unix")
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = conn.Close() }()
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, nil, err
	}
	var peer *unix.Ucred
	var failed error
	if err := errors.Join(raw.Control(func(fd uintptr) { peer, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }), failed); err != nil {
		return 0, nil, err
	}
	fd, err := unix.PidfdOpen(int(peer.Pid), 0)
	if err != nil {
		return 0, nil, err
	}
	return int(peer.Pid), func() error {
		defer func() { _ = unix.Close(fd) }()
		for {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(patience.Milliseconds()))
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err == nil && n == 0 {
				err = errors.New("the process does not end")
			}
			return err
		}
	}, nil
}

// question asks once for a name, without repetition.
func question(e *endpoint, network, name string) (string, error) {
	conn, err := dialer(e.space)(context.Background(), network, "169.254.1.1:53")
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	client := &mdns.Client{Net: network, Timeout: patience}
	got, _, err := client.ExchangeWithConn(new(mdns.Msg).SetQuestion(name+".", mdns.TypeA), &mdns.Conn{Conn: conn})
	if err != nil {
		return "", err
	}
	if len(got.Answer) != 1 {
		return "", fmt.Errorf("%s has %d answers and code %d", name, len(got.Answer), got.Rcode)
	}
	return got.Answer[0].(*mdns.A).A.String(), nil
}

// questions asks for a name over and over. It returns what ends that, and says how many
// questions were answered and what went wrong.
func questions(e *endpoint, name, want string) (end func() (answered int64, failed []error)) {
	var group sync.WaitGroup
	var stopped atomic.Bool
	var answered atomic.Int64
	var mu sync.Mutex
	var failed []error
	for _, network := range []string{"udp", "udp", "tcp"} {
		group.Go(func() {
			for !stopped.Load() {
				got, err := question(e, network, name)
				if err == nil && got != want {
					err = fmt.Errorf("%s is %s, not %s", name, got, want)
				}
				if err == nil {
					answered.Add(1)
					continue
				}
				mu.Lock()
				failed = append(failed, fmt.Errorf("over %s: %w", network, err))
				mu.Unlock()
			}
		})
	}
	return func() (int64, []error) {
		stopped.Store(true)
		group.Wait()
		return answered.Load(), failed
	}
}

// withNames returns a machine with a task on a network, on which web is 10.64.0.2, and what
// the machine is told of it.
func withNames(t *testing.T) (*machine, *endpoint, func() *networkv1.ApplyRequest) {
	_, machines := newMachines(t, 1)
	request := func() *networkv1.ApplyRequest {
		return joinRequest(machines, 0, "net", 4097, nil, func(r *networkv1.ApplyRequest) {
			r.Complete = true
			r.Services = append(r.Services, &networkv1.Service{NetworkId: "net", Id: "web", Name: "web", VirtualIps: []string{"10.64.0.2"}})
		})
	}
	machines[0].apply(request())
	a := machines[0].attach("a", "net="+at(1, 2))
	// A new link loses packets for a moment. TCP sends them again.
	got, err := question(a, "tcp", "web")
	if err != nil || got != "10.64.0.2" {
		t.Fatalf("web is %s: %v", got, err)
	}
	return machines[0], a, request
}

func TestNamesAreAnsweredWithoutPlugin(t *testing.T) {
	m, a, request := withNames(t)
	before, _, err := m.namesProcess()
	must(t, err)
	end := questions(a, "web", "10.64.0.2")
	must(t, m.plugin.Close())
	for range 20 {
		if got, err := question(a, "udp", "web"); err != nil || got != "10.64.0.2" {
			t.Errorf("without the plugin web is %s: %v", got, err)
		}
	}
	m.start()
	m.apply(request())
	a.attach()
	if answered, failed := end(); len(failed) > 0 || answered == 0 {
		t.Errorf("%d questions were answered, %d were not: %v", answered, len(failed), errors.Join(failed...))
	}
	if after, _, err := m.namesProcess(); err != nil || after != before {
		t.Errorf("process %d answers after process %d: %v", after, before, err)
	}
	// It knows what the new plugin is told.
	m.apply(&networkv1.ApplyRequest{Services: []*networkv1.Service{{NetworkId: "net", Id: "db", Name: "db", VirtualIps: []string{"10.64.0.3"}}}})
	if got, err := question(a, "udp", "db"); err != nil || got != "10.64.0.3" {
		t.Errorf("db is %s: %v", got, err)
	}
}

func TestKilledNameServerIsStartedAgain(t *testing.T) {
	m, a, _ := withNames(t)
	m.apply(&networkv1.ApplyRequest{Services: []*networkv1.Service{{NetworkId: "net", Id: "db", Name: "db", VirtualIps: []string{"10.64.0.3"}}}})
	for range 3 {
		var pid int
		var ended func() error
		repeat(t, func() (err error) {
			pid, ended, err = m.namesProcess()
			return err
		})
		must(t, unix.Kill(pid, unix.SIGKILL))
		must(t, ended())
		repeat(t, func() error {
			got, err := question(a, "tcp", "db")
			if err == nil && got != "10.64.0.3" {
				err = fmt.Errorf("db is %s", got)
			}
			return err
		})
	}
	// Its successor is told of changes.
	m.apply(&networkv1.ApplyRequest{RemovedServices: []*networkv1.ServiceRef{{NetworkId: "net", ServiceId: "db"}}})
	if got, err := question(a, "udp", "db"); err == nil {
		t.Errorf("a service that is gone is %s", got)
	}
}

// A process that starts before the plugin can tell it anything knows what its predecessor knew.
func TestNewNameServerAnswersFromJournal(t *testing.T) {
	m, a, request := withNames(t)
	m.apply(&networkv1.ApplyRequest{Services: []*networkv1.Service{{NetworkId: "net", Id: "db", Name: "db", VirtualIps: []string{"10.64.0.3"}}}})
	must(t, m.plugin.Close())
	pid, ended, err := m.namesProcess()
	must(t, err)
	must(t, unix.Kill(pid, unix.SIGKILL))
	must(t, ended())
	journal := filepath.Join(m.dir, "state", "names", "journal")
	// What a crash wrote half is left out.
	file, err := os.OpenFile(journal, os.O_APPEND|os.O_WRONLY, 0)
	must(t, err)
	_, err = file.WriteString("A\xff\x7fhalf")
	must(t, errors.Join(err, file.Close()))
	m.start()
	for name, want := range map[string]string{"web": "10.64.0.2", "db": "10.64.0.3"} {
		repeat(t, func() error {
			got, err := question(a, "tcp", name)
			if err == nil && got != want {
				err = fmt.Errorf("%s is %s", name, got)
			}
			return err
		})
	}
	m.apply(request())
}

func TestReplacedNameServerLosesNoQuestion(t *testing.T) {
	m, a, request := withNames(t)
	end := questions(a, "web", "10.64.0.2")
	for i := range 3 {
		before, ended, err := m.namesProcess()
		must(t, err)
		must(t, m.plugin.Close())
		// Another configuration is as good a reason as another program.
		m.machine = "/proc/1" + strings.Repeat("/", i+1)
		m.start()
		m.apply(request())
		must(t, ended())
		if after, _, err := m.namesProcess(); err != nil || after == before {
			t.Errorf("process %d was not replaced: %v", before, err)
		}
	}
	if answered, failed := end(); len(failed) > 0 || answered == 0 {
		t.Errorf("%d questions were answered, %d were not: %v", answered, len(failed), errors.Join(failed...))
	}
}

func TestNameServerEndsWithLastNetwork(t *testing.T) {
	for name, end := range map[string]func(m *machine){
		"network removed":   func(m *machine) { m.apply(&networkv1.ApplyRequest{RemovedNetworks: []string{"net"}}) },
		"nothing is needed": func(m *machine) { m.apply(&networkv1.ApplyRequest{Complete: true}) },
		"nothing is needed after a restart": func(m *machine) {
			m.restart()
			m.apply(&networkv1.ApplyRequest{Complete: true})
		},
		"state is gone": func(m *machine) {
			must(m.t, m.plugin.Close())
			must(m.t, os.RemoveAll(filepath.Join(m.dir, "state", "names")))
			m.start()
		},
	} {
		t.Run(name, func(t *testing.T) {
			m, a, request := withNames(t)
			_, ended, err := m.namesProcess()
			must(t, err)
			must(t, m.plugin.Detach(t.Context(), a.id))
			end(m)
			must(t, ended())
			// The next network has one again.
			m.apply(request())
			a.attach()
			if got, err := question(a, "tcp", "web"); err != nil || got != "10.64.0.2" {
				t.Errorf("web is %s: %v", got, err)
			}
		})
	}
}

func TestJournalDoesNotGrowWithTasksThatEnd(t *testing.T) {
	m, a, _ := withNames(t)
	journal := filepath.Join(m.dir, "state", "names", "journal")
	e := m.task("restarts", "net="+at(1, 9))
	for range 200 {
		e.request.Attachments[0].Aliases = append(e.request.Attachments[0].Aliases, strings.Repeat("a", 60))
	}
	written, greatest := 0, int64(0)
	for written < 3<<20 {
		e.attach()
		written += proto.Size(e.request)
		must(t, m.plugin.Detach(t.Context(), e.id))
		info, err := os.Stat(journal)
		must(t, err)
		greatest = max(greatest, info.Size())
	}
	if greatest > 3<<19 {
		t.Errorf("after requests of %d bytes the journal had up to %d, want at most 1.5 MiB", written, greatest)
	}
	if got, err := question(a, "tcp", "web"); err != nil || got != "10.64.0.2" {
		t.Errorf("web is %s, %v", got, err)
	}
}
