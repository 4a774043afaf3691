package simulation

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap/zapcore"
	"google.golang.org/grpc"

	"github.com/musterhq/muster/allocatord"
	"github.com/musterhq/muster/apid"
	"github.com/musterhq/muster/dispatcherd"
	"github.com/musterhq/muster/internal/daemon"
	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/kv/kvfault"
	"github.com/musterhq/muster/orchestratord"
	"github.com/musterhq/muster/schedulerd"
)

const (
	// prefix is where in the store the cluster lies.
	prefix = "muster"
	// stopTimeout bounds the orderly end of a manager.
	stopTimeout = 10 * time.Second
	// silence is how long the store waits for a process that says nothing any more,
	// detection how long until it sees that one was killed.
	silence   = 3 * time.Second
	detection = 250 * time.Millisecond
)

// build makes a daemon by its name.
func build(name string) func(daemon.Env) (daemon.Service, error) {
	return func(env daemon.Env) (daemon.Service, error) {
		switch name {
		case "apid":
			return apid.New(env, apid.DefaultConfig())
		case "orchestratord":
			return orchestratord.New(env)
		case "allocatord":
			return allocatord.New(env)
		case "schedulerd":
			return schedulerd.New(env)
		default:
			return dispatcherd.New(env, dispatcherd.DefaultConfig())
		}
	}
}

// manager is a replica of a manager daemon, over all of its lives.
type manager struct {
	name string
	c    *cluster

	mu   sync.Mutex
	life *managerLife // nil while it is down
}

// managerLife is one process.
type managerLife struct {
	host   *host
	kv     *kvfault.KV
	cancel context.CancelFunc
	done   chan struct{}
	// ending says that the process is meant to end.
	ending atomic.Bool
	// mends undo what is broken of the process's way to the store.
	mends []func()
}

// start starts the process, unless it runs.
func (m *manager) start() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.life != nil {
		return
	}
	name, _, _ := strings.Cut(m.name, "-")
	c := m.c
	var space kv.KV = &remoteKV{KV: c.kv, latency: c.script.Size.Latency, lossDelay: c.sessionLossDelay(m.name), waiters: &c.sessionWaiters}
	if c.mutation.KV != nil {
		space = c.mutation.KV(name, space)
	}
	l := &managerLife{host: c.net.join(m.name), kv: kvfault.New(space), done: make(chan struct{})}
	dial := grpc.WithContextDialer(l.host.dial)
	h := &daemon.Host{
		KV: l.kv, Prefix: prefix, Credentials: daemon.Plain(), Logger: c.journal.logger(m.name, zapcore.WarnLevel),
		Metrics: prometheus.NewRegistry(), Version: "simulation", StopTimeout: stopTimeout, DialOptions: []grpc.DialOption{dial},
	}
	ctx, cancel := context.WithCancel(context.Background())
	l.cancel = cancel
	listener := l.host.listen()
	m.life = l
	c.wg.Go(func() {
		defer close(l.done)
		err := h.Run(ctx, daemon.Spec{Name: name, Listener: listener, Advertise: addressOf(m.name), Build: build(name)})
		if !l.ending.Load() {
			c.violated("%s ended by itself: %v", m.name, err)
		}
	})
}

// take makes the manager be down, and returns the process that it was.
func (m *manager) take() *managerLife {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := m.life
	m.life = nil
	return l
}

// kill ends the process as SIGKILL does, or, silently, as the loss of its machine.
// Nothing that it does from now on reaches anybody.
func (m *manager) kill(silent bool) {
	l := m.take()
	if l == nil {
		return
	}
	l.ending.Store(true)
	l.kv.Cut()
	l.host.die(silent)
	l.mend()
	l.cancel()
	after := detection
	if silent {
		after = silence
	}
	m.c.wg.Go(func() {
		time.Sleep(after)
		m.c.loseSessions(l.kv)
		<-l.done
	})
}

// stop ends the process in order.
func (m *manager) stop() {
	l := m.take()
	if l == nil {
		return
	}
	l.ending.Store(true)
	l.cancel()
	within := time.NewTimer(2 * stopTimeout)
	defer within.Stop()
	select {
	case <-l.done:
	case <-within.C:
		m.c.violated("%s did not end within %v", m.name, 2*stopTimeout)
		<-l.done
	}
	l.mend()
	l.host.die(false)
	// If it could not close its session, that runs out.
	m.c.loseSessions(l.kv)
}

func (l *managerLife) mend() {
	for _, mend := range l.mends {
		mend()
	}
}

// running returns the process, nil if there is none.
func (m *manager) running() *managerLife {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.life
}

// inject breaks the process's way to the store, until mend is called.
func (m *manager) inject(faults ...kvfault.Fault) (mend func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.life == nil {
		return func() {}
	}
	var mends []func()
	for _, f := range faults {
		mends = append(mends, m.life.kv.Inject(f))
	}
	m.life.mends = append(m.life.mends, mends...)
	return func() {
		for _, mend := range mends {
			mend()
		}
	}
}
