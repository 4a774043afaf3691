package consul

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/musterhq/muster/internal/backoff"
	"github.com/musterhq/muster/internal/kv"
)

const (
	// leastTTL is Consul's minimum.
	leastTTL = 10 * time.Second
	// lockDelay is how long Consul refuses a lock after its session was lost. It protects
	// clients whose safety depends on locks, which Muster's does not. 0 would mean
	// Consul's default of 15 s.
	lockDelay = time.Millisecond
	// registerTimeout bounds the time until the servers know a check that was registered
	// with the agent.
	registerTimeout = 5 * time.Second
	// registerPause is the time between two attempts to open a session.
	registerPause = 20 * time.Millisecond
	// watchPause is the time between two attempts to read a session.
	watchPause = 250 * time.Millisecond
)

// session is a Consul session, renewed and watched until it ends.
type session struct {
	kv      *KV
	id      string
	service string // id of the service, or ""
	host    string // the agent that has the service
	lost    chan struct{}
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	once    sync.Once
}

// NewSession registers the service, if any, and opens a session that is bound to its
// checks.
func (s *KV) NewSession(ctx context.Context, cfg kv.SessionConfig) (kv.Session, error) {
	for tried := 1; ; tried++ {
		at := int(s.router.current.Load())
		x, err := s.open(ctx, cfg, s.router.hosts[at])
		if err == nil {
			return x, nil
		}
		if errors.Is(err, kv.ErrUnavailable) && ctx.Err() == nil {
			// The agent may answer other requests and not this one: while it waits for
			// a hanging leader, it registers no services.
			s.router.leave(at)
		}
		if !notSent(err) || tried == len(s.router.hosts) {
			return nil, fmt.Errorf("open session %q: %w", cfg.Name, err)
		}
	}
}

// open opens a session with one agent.
func (s *KV) open(ctx context.Context, cfg kv.SessionConfig, host string) (*session, error) {
	ttl := max(cfg.TTL, leastTTL)
	entry := &api.SessionEntry{
		Name: cfg.Name, TTL: ttl.String(), LockDelay: lockDelay, Behavior: api.SessionBehaviorDelete,
		NodeChecks: []string{"serfHealth"},
	}
	x := &session{kv: s, host: host, lost: make(chan struct{})}
	there := pin(ctx, host)
	if cfg.Service != nil {
		checks, err := s.register(there, cfg.Service)
		if err != nil {
			return nil, err
		}
		for _, id := range checks {
			entry.ServiceChecks = append(entry.ServiceChecks, api.ServiceCheck{ID: id})
		}
		x.service = cfg.Service.ID
		s.enter(x)
	}
	var err error
	if x.id, err = s.create(there, entry, cfg.Service != nil); err != nil {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
		defer cancel()
		return nil, errors.Join(err, s.deregister(clean, x))
	}
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	x.cancel = cancel
	x.wg.Go(func() { x.renew(run, ttl) })
	x.wg.Go(func() { x.watch(run) })
	if cfg.Service != nil {
		x.wg.Go(func() { x.keepReporting(pin(run, host), entry.ServiceChecks[0].ID, silence(cfg.Service)) })
	}
	return x, nil
}

// create opens the session. If it has new checks it retries for a while: the agent
// registers them with the servers with some delay, and until then the servers answer 500.
func (s *KV) create(ctx context.Context, entry *api.SessionEntry, newChecks bool) (string, error) {
	deadline := time.Now().Add(registerTimeout)
	for {
		call, cancel := context.WithTimeout(ctx, callTimeout)
		id, _, err := s.client.Session().Create(entry, (&api.WriteOptions{}).WithContext(call))
		cancel()
		if err == nil {
			return id, nil
		}
		err = classify(ctx, err)
		if !newChecks || !errors.Is(err, kv.ErrUnavailable) || time.Now().After(deadline) {
			return "", err
		}
		if ended := backoff.Sleep(ctx, registerPause); ended != nil {
			return "", fmt.Errorf("%w: %w", ended, err)
		}
	}
}

// renew keeps the session alive. A session that could not be renewed for its TTL counts as
// lost, because Consul may have ended it. If Consul has not, it still holds locks, so renew
// destroys it as soon as Consul can be reached.
func (x *session) renew(ctx context.Context, ttl time.Duration) {
	ticker := time.NewTicker(ttl / 3)
	defer ticker.Stop()
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if time.Since(last) > ttl {
			x.end()
			if x.destroy(ctx) == nil {
				return
			}
			continue
		}
		call, cancel := context.WithTimeout(ctx, ttl/3)
		asked := time.Now()
		entry, _, err := x.kv.client.Session().Renew(x.id, (&api.WriteOptions{}).WithContext(call))
		cancel()
		switch {
		case err == nil && entry == nil:
			x.end()
			return
		case err == nil:
			last = asked
		}
	}
}

// watch notices at once when failing checks end the session.
func (x *session) watch(ctx context.Context) {
	var index uint64
	for ctx.Err() == nil {
		entry, meta, err := x.kv.client.Session().Info(x.id, (&api.QueryOptions{WaitIndex: index, WaitTime: listWait}).WithContext(watching(ctx)))
		if err != nil {
			index = 0
			_ = backoff.Sleep(ctx, watchPause)
			continue
		}
		if entry == nil {
			x.end()
			return
		}
		index = meta.LastIndex
	}
}

func (x *session) end() { x.once.Do(func() { close(x.lost) }) }

func (x *session) ID() string { return x.id }

func (x *session) Lost() <-chan struct{} { return x.lost }

func (x *session) Acquire(ctx context.Context, key string, value []byte) (bool, error) {
	if err := limits.Check([]kv.Op{{Verb: kv.Set, Key: key, Value: value}}); err != nil {
		return false, fmt.Errorf("acquire: %w", err)
	}
	select {
	case <-x.lost:
		return false, fmt.Errorf("acquire %q: %w", key, kv.ErrSessionLost)
	default:
	}
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	ok, _, err := x.kv.client.KV().Acquire(&api.KVPair{Key: key, Value: pack(value), Session: x.id}, (&api.WriteOptions{}).WithContext(blameless(call)))
	if err == nil {
		return ok, nil
	}
	// Consul also answers this for a session that has ended.
	entry, _, ierr := x.kv.client.Session().Info(x.id, (&api.QueryOptions{}).WithContext(call))
	if ierr == nil && entry == nil {
		x.end()
		return false, fmt.Errorf("acquire %q: %w", key, kv.ErrSessionLost)
	}
	return false, fmt.Errorf("acquire %q: %w", key, classify(ctx, err))
}

func (x *session) Release(ctx context.Context, key string) error {
	// A refused transaction means that the lock is not held, which is not an error.
	_, err := x.kv.txn(ctx, api.TxnOps{
		{KV: &api.KVTxnOp{Verb: api.KVUnlock, Key: key, Session: x.id}},
		{KV: &api.KVTxnOp{Verb: api.KVDelete, Key: key}},
	}, api.QueryOptions{})
	if err != nil {
		return fmt.Errorf("release %q: %w", key, err)
	}
	return nil
}

func (x *session) Close(ctx context.Context) error {
	x.cancel()
	x.wg.Wait()
	x.end()
	err := x.destroy(ctx)
	if err != nil {
		err = fmt.Errorf("end session %s: %w", x.id, err)
	}
	return errors.Join(err, x.kv.deregister(ctx, x))
}

// destroy ends the session in Consul. A missing session is not an error.
func (x *session) destroy(ctx context.Context) error {
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if _, err := x.kv.client.Session().Destroy(x.id, (&api.WriteOptions{}).WithContext(call)); err != nil {
		return classify(ctx, err)
	}
	return nil
}
