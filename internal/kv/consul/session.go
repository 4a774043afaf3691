package consul

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/musterhq/muster/internal/kv"
)

const (
	defaultTTL           = 10 * time.Second
	defaultCheckInterval = 250 * time.Millisecond
	// lockDelay is how long Consul refuses a lock whose session was lost. It
	// exists to protect clients that rest their safety on locks; Muster does not.
	// 0 would mean Consul's default of 15 s.
	lockDelay = time.Millisecond
	// registerTimeout bounds the time until a check that was registered with the
	// agent is known to the servers.
	registerTimeout = 5 * time.Second
)

// session is a Consul session, renewed and watched until it ends.
type session struct {
	kv      *KV
	id      string
	service string // id of the service, or ""
	lost    chan struct{}
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	once    sync.Once
}

// NewSession registers the service, if there is one, and opens a session that
// is bound to its check.
func (s *KV) NewSession(ctx context.Context, cfg kv.SessionConfig) (kv.Session, error) {
	if cfg.TTL == 0 {
		cfg.TTL = defaultTTL
	}
	entry := &api.SessionEntry{
		Name: cfg.Name, TTL: cfg.TTL.String(), LockDelay: lockDelay, Behavior: api.SessionBehaviorDelete,
		NodeChecks: []string{"serfHealth"},
	}
	x := &session{kv: s, lost: make(chan struct{})}
	if cfg.Service != nil {
		x.service = cfg.Service.ID
		check, err := s.register(ctx, cfg.Service)
		if err != nil {
			return nil, err
		}
		entry.ServiceChecks = []api.ServiceCheck{{ID: check}}
	}
	id, err := s.create(ctx, entry, cfg.Service != nil)
	if err != nil {
		if x.service != "" {
			_ = s.client.Agent().ServiceDeregisterOpts(x.service, (&api.QueryOptions{}).WithContext(ctx))
		}
		return nil, fmt.Errorf("open session %q: %w", cfg.Name, err)
	}
	x.id = id
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	x.cancel = cancel
	x.wg.Go(func() { x.renew(run, cfg.TTL) })
	x.wg.Go(func() { x.watch(run) })
	return x, nil
}

// register enters the process in the agent's catalog, with a check that dials
// it.
func (s *KV) register(ctx context.Context, service *kv.Service) (check string, err error) {
	interval := service.CheckInterval
	if interval == 0 {
		interval = defaultCheckInterval
	}
	check = service.ID + "-alive"
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	err = s.client.Agent().ServiceRegisterOpts(&api.AgentServiceRegistration{
		ID: service.ID, Name: service.Name, Address: service.Address, Port: service.Port,
		Tags: service.Tags, Meta: service.Meta,
		Check: &api.AgentServiceCheck{
			CheckID: check, Name: "process answers", TCP: service.CheckAddress,
			Interval: interval.String(), Timeout: "1s",
			// The process is alive: it is speaking.
			Status: api.HealthPassing,
			// Consul's least is a minute.
			DeregisterCriticalServiceAfter: "1m",
		},
	}, api.ServiceRegisterOpts{}.WithContext(call))
	if err != nil {
		return "", fmt.Errorf("register service %q: %w", service.ID, classify(err))
	}
	return check, nil
}

// create opens the session. The agent tells the servers of a new check in its
// own time, and until then they refuse a session that names it; so, with a
// check, a refusal is repeated for a while.
func (s *KV) create(ctx context.Context, entry *api.SessionEntry, patient bool) (string, error) {
	deadline := time.Now().Add(registerTimeout)
	for {
		call, cancel := context.WithTimeout(ctx, callTimeout)
		id, _, err := s.client.Session().Create(entry, (&api.WriteOptions{}).WithContext(call))
		cancel()
		if err == nil {
			return id, nil
		}
		if !patient || time.Now().After(deadline) {
			return "", classify(err)
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// renew keeps the session alive. When it could not be renewed for as long as
// its TTL, it counts as lost: Consul may end it from then on.
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
		case time.Since(last) > ttl:
			x.end()
			return
		}
	}
}

// watch learns at once when the session is ended by its check.
func (x *session) watch(ctx context.Context) {
	var index uint64
	for ctx.Err() == nil {
		entry, meta, err := x.kv.client.Session().Info(x.id, (&api.QueryOptions{WaitIndex: index, WaitTime: listWait}).WithContext(ctx))
		if err != nil {
			index = 0
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
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
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	ok, _, err := x.kv.client.KV().Acquire(&api.KVPair{Key: key, Value: value, Session: x.id}, (&api.WriteOptions{}).WithContext(ctx))
	if err == nil {
		return ok, nil
	}
	// Consul answers for a session that has ended as it does for a fault of its
	// own (500); so ask.
	entry, _, ierr := x.kv.client.Session().Info(x.id, (&api.QueryOptions{}).WithContext(ctx))
	if ierr == nil && entry == nil {
		x.end()
		return false, fmt.Errorf("acquire %q: %w", key, kv.ErrSessionLost)
	}
	return false, fmt.Errorf("acquire %q: %w", key, classify(err))
}

func (x *session) Release(ctx context.Context, key string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	// A transaction that is refused says that the lock is not held: no error.
	_, _, _, err := x.kv.client.Txn().Txn(api.TxnOps{
		{KV: &api.KVTxnOp{Verb: api.KVUnlock, Key: key, Session: x.id}},
		{KV: &api.KVTxnOp{Verb: api.KVDelete, Key: key}},
	}, (&api.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return fmt.Errorf("release %q: %w", key, classify(err))
	}
	return nil
}

func (x *session) Close(ctx context.Context) error {
	x.cancel()
	x.wg.Wait()
	x.end()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := x.kv.client.Session().Destroy(x.id, (&api.WriteOptions{}).WithContext(ctx))
	if err != nil {
		err = fmt.Errorf("end session: %w", classify(err))
	}
	if x.service != "" {
		if derr := x.kv.client.Agent().ServiceDeregisterOpts(x.service, (&api.QueryOptions{}).WithContext(ctx)); derr != nil && err == nil {
			err = fmt.Errorf("deregister service %q: %w", x.service, classify(derr))
		}
	}
	return err
}
