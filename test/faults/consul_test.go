package faults_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/test/kit/cluster"
	"github.com/musterhq/muster/test/kit/consultest"
	"github.com/musterhq/muster/test/kit/rig"
	"github.com/musterhq/muster/test/kit/wait"
)

// away is how long Consul is gone. Much longer is for the chaos run.
const away = 12 * time.Second

// hang is how long one server hangs: long enough for what rests on it to move.
const hang = 8 * time.Second

// TestConsulTrouble has a Consul of three servers fail, in part and as a whole.
// No task notices.
func TestConsulTrouble(t *testing.T) {
	t.Parallel()
	b := newBench(t, cluster.Config{ConsulServers: 3})
	t.Run("leader killed", b.killLeader)
	t.Run("all servers restarted", b.restartConsul)
	t.Run("follower hangs", func(t *testing.T) { b.hangServer(t, false) })
	t.Run("leader hangs", func(t *testing.T) { b.hangServer(t, true) })
	t.Run("next leader hangs", func(t *testing.T) { b.hangServer(t, true) })
	t.Run("killed for a while", func(t *testing.T) { b.consulAway(t, (*consultest.Cluster).Kill, (*consultest.Cluster).Restart) })
	t.Run("hangs for a while", func(t *testing.T) { b.consulAway(t, (*consultest.Cluster).Pause, (*consultest.Cluster).Resume) })
	t.Run("remove all", func(t *testing.T) { removeAll(t, b.Rig) })
}

// changeTimeout bounds a change while Consul is in trouble. There is a new leader
// after 2 s, but a server holds on to a connection to one that hangs for up to 40 s
// (yamux: 30 s until it asks, and 10 s until it gives up), and to all that it has
// sent there. Daemons wait for a call for 5 s and repeat it, so they need not
// wait for that; it takes 4 to 7 s. A daemon that has to open a
// session may have to wait, for a server takes in no services while it tells
// such a leader of one.
const changeTimeout = 2 * time.Minute

// change scales a service up.
func (b *bench) change(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), changeTimeout)
	defer cancel()
	ok(t, b.grow(ctx, b.services[0]))
}

func (b *bench) leader(t *testing.T) *consultest.Server {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), waitTimeout)
	defer cancel()
	s, err := b.Servers.Leader(ctx)
	ok(t, err)
	return s
}

// server returns the server that leads, or one that does not.
func (b *bench) server(t *testing.T, leads bool) *consultest.Server {
	t.Helper()
	leader := b.leader(t)
	if leads {
		return leader
	}
	all := b.Servers.Servers()
	return all[slices.IndexFunc(all, func(s *consultest.Server) bool { return s != leader })]
}

func (b *bench) killLeader(t *testing.T) {
	leader := b.leader(t)
	restart := undo(t, leader.Restart)
	ok(t, leader.Kill())
	b.change(t)
	ok(t, restart())
	b.settle(t)
	b.unmoved(t)
}

func (b *bench) restartConsul(t *testing.T) {
	restart := undo(t, b.Servers.Restart)
	ok(t, b.Servers.Kill())
	ok(t, restart())
	b.change(t)
	b.settle(t)
	b.unmoved(t)
}

// hangServer stops one server for a while.
func (b *bench) hangServer(t *testing.T, leads bool) {
	victim := b.server(t, leads)
	resume := undo(t, victim.Resume)
	ok(t, victim.Pause())
	for began := time.Now(); time.Since(began) < hang; {
		b.change(t)
	}
	ok(t, resume())
	b.settle(t)
	b.unmoved(t)
}

// consulAway takes Consul away for a while: reads are served, writes are refused
// in time, tasks run on, and what ends meanwhile is replaced afterwards.
func (b *bench) consulAway(t *testing.T, take, bring func(*consultest.Cluster) error) {
	waits := "schedulerd-2"
	ok(t, b.Process(waits).Kill())
	offset := logSize(t, b.Process(waits).Log)
	began := time.Now()
	back := undo(t, func() error { return bring(b.Servers) })
	ok(t, take(b.Servers))
	ok(t, b.StartManager(waits))

	// One task dies meanwhile.
	var victim *musterv1.Task
	for _, victim = range b.steady {
		break
	}
	ok(t, syscall.Kill(int(victim.Status.Runtime.Pid), syscall.SIGKILL))

	// Writes that have no deadline of their own are given one.
	var patient sync.WaitGroup
	for _, name := range b.Replicas("apid") {
		patient.Go(func() { b.refused(t, name, waitTimeout, codes.Unavailable) })
	}
	b.marked(t, began)
	writes := 0
	for time.Since(began) < away {
		for _, name := range b.Replicas("apid") {
			b.read(t, name)
			b.refused(t, name, time.Second, codes.Unavailable, codes.DeadlineExceeded)
			writes++
		}
	}
	patient.Wait()
	t.Logf("%d writes were refused", writes)
	wait.Within(t, waitTimeout, "a daemon that was started meanwhile says that it waits", func(context.Context) error {
		logged, err := os.ReadFile(b.Process(waits).Log)
		if err == nil && !strings.Contains(string(logged[offset:]), "store is unavailable; waiting for it") {
			err = fmt.Errorf("it says:\n%s", logged[offset:])
		}
		return err
	})
	ok(t, back())
	b.change(t)
	b.relearn(t)
	b.settle(t)
	wait.Within(t, waitTimeout, "the dead task is replaced, and no other", func(ctx context.Context) error {
		now, err := b.Running(ctx, "steady", len(b.steady))
		if err != nil {
			return err
		}
		if err := rig.Replaced(b.steady, now, victim.Id); err != nil {
			return err
		}
		b.steady = now
		return nil
	})
}

func logSize(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	ok(t, err)
	return info.Size()
}

// marked waits until what is read is marked as perhaps old, in gRPC, in REST and
// on the command line.
func (b *bench) marked(t *testing.T, began time.Time) {
	t.Helper()
	wait.Within(t, waitTimeout, "answers are marked as stale", func(ctx context.Context) error {
		var header metadata.MD
		_, err := b.Client("apid").ListTasks(ctx, &musterv1.ListTasksRequest{}, grpc.Header(&header))
		if err == nil && len(header.Get("muster-stale-seconds")) == 0 {
			err = errors.New("there is no header")
		}
		return err
	})
	t.Logf("answers were marked as stale %v after Consul was gone", time.Since(began))
	resp, err := http.Get("http://" + b.REST + "/v1/services")
	ok(t, err)
	ok(t, resp.Body.Close())
	if resp.Header.Get("muster-stale-seconds") == "" {
		t.Errorf("REST does not mark what may be old: %v", resp.Header)
	}
	out, err := exec.CommandContext(t.Context(), b.Binary(), "service", "ls", "--address", b.API).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "no contact with the store") || !strings.Contains(string(out), "steady") {
		t.Errorf("the command line does not warn: %v\n%s", err, out)
	}
}

// read reads while Consul is away, which is not brought back before that has an answer.
func (b *bench) read(t *testing.T, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), waitTimeout)
	defer cancel()
	resp, err := b.Client(name).ListTasks(ctx, &musterv1.ListTasksRequest{Services: []string{"steady"}})
	if err != nil || len(resp.Tasks) < len(b.steady) {
		t.Errorf("%s: a read while Consul is away: %d tasks, %v", name, len(resp.GetTasks()), err)
	}
}

// relearn sees what has become of the writes that were refused.
func (b *bench) relearn(t *testing.T) {
	t.Helper()
	id := b.services[1]
	size := b.size(id)
	// A refused write may be under way yet: a server of Consul that was cut off from
	// its leader keeps it for 7 s. Once the service has been changed it comes to
	// nothing. It may have come already, and what changes nothing is not written, so
	// there are two changes: one of them is written after it.
	ok(t, b.Scale(t.Context(), id, size+1))
	ok(t, b.Scale(t.Context(), id, size))
	wait.Within(t, waitTimeout, "the refused writes are settled", func(ctx context.Context) error {
		s, err := b.Service(ctx, id)
		if n := s.GetSpec().GetReplicated().GetReplicas(); err == nil && n != size {
			err = fmt.Errorf("it has %d replicas", n)
		}
		return err
	})
}

// refused writes while Consul is away, with a deadline. The write may have been
// made anyway, for Consul may find it when it is back.
func (b *bench) refused(t *testing.T, name string, deadline time.Duration, want ...codes.Code) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	began := time.Now()
	id := b.services[1]
	_, err := b.Client(name).ScaleService(ctx, &musterv1.ScaleServiceRequest{Service: id, Replicas: b.size(id) + 1})
	if !slices.Contains(want, status.Code(err)) {
		t.Errorf("%s: a write while Consul is away: %v, want %v", name, err, want)
	}
	// apid's own bound is 10 s, or the caller's if that is less.
	if took := time.Since(began); took > waitTimeout/2 {
		t.Errorf("%s: a write while Consul is away was refused after %v, want at most %v", name, took, waitTimeout/2)
	}
}
