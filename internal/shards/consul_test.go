package shards_test

import (
	"context"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/kv/consul"
	"github.com/musterhq/muster/internal/shards"
	"github.com/musterhq/muster/test/kit/consultest"
)

// patience bounds every wait on real time.
const patience = 2 * time.Minute

var server consultest.Shared

func TestMain(m *testing.M) { os.Exit(server.Run(m)) }

// real is a replica that uses a real Consul.
type real struct {
	*shards.Manager
	cancel context.CancelFunc
	ended  chan error
}

// runReal starts a replica that is registered in Consul's catalog with its own
// listener. It is stopped when the test ends.
func runReal(t *testing.T, store *consul.KV, name string, log *zap.Logger) *real {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m, err := shards.New(shards.Config{
		KV: store, Prefix: prefix, Subsystem: subsystem, Member: shards.Member{Instance: name, Address: l.Addr().String()},
		Session: func(ctx context.Context) (kv.Session, error) {
			return store.NewSession(ctx, kv.SessionConfig{Name: name, Service: &kv.Service{
				ID: "test-" + name, Name: "test", Address: "127.0.0.1", CheckAddress: l.Addr().String(),
			}})
		},
		Logger: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	r := &real{Manager: m, cancel: cancel, ended: make(chan error, 1)}
	go func() {
		r.ended <- m.Run(ctx, func(ctx context.Context, _ int) error {
			<-ctx.Done()
			return nil
		})
	}()
	t.Cleanup(func() {
		r.leave(t)
		_ = l.Close()
	})
	return r
}

func (r *real) leave(t *testing.T) {
	r.cancel()
	if err := <-r.ended; err != nil {
		t.Error(err)
	}
	r.ended <- nil
}

// untilShares waits until the directory shows that the named replicas hold all
// shards in even shares, and returns how long that took.
func untilShares(t *testing.T, d *shards.Directory, names ...string) time.Duration {
	t.Helper()
	began := time.Now()
	timeout := time.After(patience)
	for {
		changed := d.Changed()
		held := map[string]int{}
		for _, m := range d.Owners() {
			held[m.Instance]++
		}
		sum, even := 0, len(held) == len(names)
		for _, name := range names {
			n := held[name]
			sum += n
			even = even && (n == shards.DefaultShards/len(names) || n == shards.DefaultShards/len(names)+1)
		}
		if even && sum == shards.DefaultShards {
			return time.Since(began).Round(time.Millisecond)
		}
		select {
		case <-changed:
		case <-timeout:
			t.Fatalf("shares after %v = %v, want even shares of all shards for %v", patience, held, names)
		}
	}
}

// TestKilledReplicaIsReplacedBeforeItsTTL measures how soon shards get a new owner when
// a replica joins, leaves, is killed, or is paused.
func TestKilledReplicaIsReplacedBeforeItsTTL(t *testing.T) {
	consul := server.Start(t)
	log := zaptest.NewLogger(t, zaptest.Level(zap.WarnLevel))
	d := runDirectory(t, consul.KV(t))
	if err := d.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	runReal(t, consul.KV(t), "a", log)
	t.Logf("the first replica has all shards after %v", untilShares(t, d, "a"))
	b := runReal(t, consul.KV(t), "b", log)
	t.Logf("the second replica has its share after %v", untilShares(t, d, "a", "b"))
	began := time.Now()
	b.leave(t)
	untilShares(t, d, "a")
	t.Logf("the first replica has all shards again %v after the second left", time.Since(began).Round(time.Millisecond))

	var took []time.Duration
	for i := range 5 {
		took = append(took, overtake(t, consul, d, "killed"+strconv.Itoa(i), syscall.SIGKILL))
	}
	slices.Sort(took)
	t.Logf("the first replica has all shards again after another was killed: median %v of %v", took[len(took)/2], took)
	if least := took[0]; least > 8*time.Second {
		t.Errorf("shards of a killed replica got an owner after %v, want at most 8s, below the TTL of its session", least)
	}
	t.Logf("the first replica has all shards again after another was paused: %v", overtake(t, consul, d, "stopped", syscall.SIGSTOP))
}

// overtake starts a process that gets its share beside replica a, and kills or pauses
// it. It returns how long it takes until a has all shards. A paused process must give
// up its shards when it continues, and then get its share back.
func overtake(t *testing.T, consul *consultest.Server, d *shards.Directory, name string, by syscall.Signal) time.Duration {
	t.Helper()
	child := exec.Command(os.Args[0], "-test.run=^TestReplica$")
	child.Env = append(os.Environ(), "REPLICA="+name, "REPLICA_CONSUL="+consul.Address)
	child.Stderr = os.Stderr
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = child.Process.Kill()
		_ = child.Wait()
	}()
	untilShares(t, d, "a", name)
	if err := child.Process.Signal(by); err != nil {
		t.Fatal(err)
	}
	took := untilShares(t, d, "a")
	if by == syscall.SIGSTOP {
		if err := child.Process.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		t.Logf("the paused replica has its share again %v after it continued", untilShares(t, d, "a", name))
	}
	return took
}

// TestReplica is the process that overtake starts. It is not a test of its own.
func TestReplica(t *testing.T) {
	name := os.Getenv("REPLICA")
	if name == "" {
		return // it runs as part of the suite
	}
	store, err := consul.New(consul.Config{Address: os.Getenv("REPLICA_CONSUL")})
	if err != nil {
		t.Fatal(err)
	}
	if err := <-runReal(t, store, name, zap.NewNop()).ended; err != nil {
		t.Error(err)
	}
}

// TestReplicasShareEvenlyAfterConsulRestarts kills Consul under two replicas, starts it
// again, and lets a third replica join.
func TestReplicasShareEvenlyAfterConsulRestarts(t *testing.T) {
	t.Parallel()
	consul := consultest.Start(t)
	log := zaptest.NewLogger(t, zaptest.Level(zap.ErrorLevel))
	d := runDirectory(t, consul.KV(t))
	runReal(t, consul.KV(t), "a", log)
	runReal(t, consul.KV(t), "b", log)
	untilShares(t, d, "a", "b")
	if err := consul.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := consul.Restart(); err != nil {
		t.Fatal(err)
	}
	// The directory may still show the old state, so the third replica must join too.
	runReal(t, consul.KV(t), "c", log)
	t.Logf("three replicas have even shares %v after Consul was back", untilShares(t, d, "a", "b", "c"))
}
