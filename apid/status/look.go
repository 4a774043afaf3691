package status

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"

	daemonv1 "github.com/musterhq/muster/api/muster/daemon/v1"
	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/shards"
)

const (
	// storeTimeout is how long the store may take to answer.
	storeTimeout = 2 * time.Second
	// reportTimeout is how long an instance may take to answer.
	reportTimeout = time.Second
	// looks is how often apid checks that each shard has an owner, with lookPause
	// between: a shard that is handed over has none for a moment.
	looks     = 3
	lookPause = 250 * time.Millisecond
)

// Looker looks.
type Looker struct {
	KV     kv.KV
	Prefix string
	// Newest reads the newest sequence numbers of all tables from the store.
	Newest func(context.Context) (map[string][]uint64, error)
	// LastKnown returns the last known ownership, for a store that is away.
	LastKnown func() map[string]shards.Ownership
	// StaleFor returns how old what this process knows is.
	StaleFor func() time.Duration
	Dial     func(address string) (*grpc.ClientConn, error)
	Log      *zap.Logger
}

// Look finds out what can be found out within some seconds, whether the store
// answers or not.
func (l *Looker) Look(ctx context.Context) Findings {
	f := Findings{Processes: map[string][]kv.Process{}, Reports: map[string]Report{}}
	f.Store = l.store(ctx)
	if f.Store.Err == nil {
		f.Store.Err = l.read(ctx, &f)
	}
	if f.Store.Err != nil {
		f.Ownership, f.Newest = l.LastKnown(), nil
	}
	f.Store.StaleFor = l.StaleFor()
	l.ask(ctx, &f)
	return f
}

// store asks the store about itself, and for a key, which only a leader may
// answer. It is no matter whether the key is there.
func (l *Looker) store(ctx context.Context) (s Store) {
	ctx, cancel := limited(ctx)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() {
		var err error
		if s.Description, err = l.KV.Describe(ctx); err != nil {
			l.Log.Debug("failed to describe the store", zap.Error(err))
		}
	})
	var probe error
	var latency time.Duration
	wg.Go(func() {
		began := time.Now()
		_, probe = l.KV.Get(ctx, l.Prefix+"/probe")
		latency = time.Since(began)
	})
	wg.Wait()
	s.Latency = latency
	if probe != nil && !errors.Is(probe, kv.ErrNotFound) {
		s.Err = probe
	}
	return s
}

// limited bounds what is asked of the store.
func limited(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, storeTimeout, fmt.Errorf("no answer within %v: %w", storeTimeout, kv.ErrUnavailable))
}

// read reads what the store knows.
func (l *Looker) read(ctx context.Context, f *Findings) error {
	ctx, cancel := limited(ctx)
	defer cancel()
	subsystems := Subsystems()
	processes := make([][]kv.Process, len(subsystems))
	errs := make([]error, len(subsystems)+2)
	var wg sync.WaitGroup
	wg.Go(func() { f.Ownership, errs[0] = l.ownership(ctx) })
	wg.Go(func() { f.Newest, errs[1] = l.Newest(ctx) })
	for i, s := range subsystems {
		wg.Go(func() { processes[i], errs[2+i] = l.KV.Processes(ctx, "muster-"+s.Daemon) })
	}
	wg.Wait()
	for i, s := range subsystems {
		for _, p := range processes[i] {
			// One Consul can hold several clusters.
			if p.Meta["prefix"] == l.Prefix {
				f.Processes[s.Daemon] = append(f.Processes[s.Daemon], p)
			}
		}
	}
	return errors.Join(errs...)
}

// ownership reads who owns the shards, again if a shard has no owner yet.
func (l *Looker) ownership(ctx context.Context) (map[string]shards.Ownership, error) {
	for look := 1; ; look++ {
		ownership, err := shards.ReadOwnership(ctx, l.KV, l.Prefix, l.Log)
		if err != nil || look == looks || settled(ownership) {
			return ownership, err
		}
		t := time.NewTimer(lookPause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return ownership, nil
		}
	}
}

// settled reports whether all shards are held that a replica could hold.
func settled(ownership map[string]shards.Ownership) bool {
	for _, s := range Subsystems() {
		if c := ownership[s.Name]; len(c.Members) > 0 && len(unowned(s, c)) > 0 {
			return false
		}
	}
	return true
}

func unowned(s Subsystem, c shards.Ownership) []uint32 {
	var none []uint32
	for shard := range s.Shards {
		if _, ok := c.Leases[shard]; !ok {
			none = append(none, uint32(shard))
		}
	}
	return none
}

// ask asks all instances for their reports, at once.
func (l *Looker) ask(ctx context.Context, f *Findings) {
	addresses := map[string]string{}
	for _, processes := range f.Processes {
		for _, p := range processes {
			if p.Alive {
				addresses[p.Meta["instance"]] = p.Address
			}
		}
	}
	for _, c := range f.Ownership {
		for _, m := range c.Members {
			addresses[m.Instance] = m.Address
		}
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for instance, address := range addresses {
		wg.Go(func() {
			r := l.report(ctx, address)
			mu.Lock()
			defer mu.Unlock()
			f.Reports[instance] = r
		})
	}
	wg.Wait()
}

func (l *Looker) report(ctx context.Context, address string) Report {
	ctx, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	conn, err := l.Dial(address)
	if err != nil {
		return Report{Err: err}
	}
	defer func() { _ = conn.Close() }()
	resp, err := daemonv1.NewDaemonServiceClient(conn).Report(ctx, &daemonv1.ReportRequest{})
	return Report{ReportResponse: resp, Err: err}
}
