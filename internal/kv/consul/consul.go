// Package consul keeps the kv in HashiCorp Consul, through its HTTP API. No
// type of Consul's leaves the package.
//
// Values of some length are kept compressed, for what Consul makes of them (JSON,
// base64) costs more than compression does.
//
// Two properties of Consul's are worth knowing. A list that waits for a prefix
// under which there is no key yet is woken by every write nearby, which is
// expensive. And an agent allows 200 connections from one address
// (limits.http_max_conns_per_client). Every list that waits takes one, so waiting
// lists are few, and all other calls share a small pool (see pools).
package consul

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"
	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"github.com/musterhq/muster/internal/kv"
)

// limits are those of a Consul server with its defaults (1.22): 128 operations,
// and 512 KiB of request (txn_max_req_len), in which values are base64 within
// JSON: 4/3 of their length, and with the longest of keys and indexes some 340
// bytes an operation around them.
var limits = kv.Limits{Ops: 128, Bytes: 360_000}

// callTimeout bounds every call that does not block on purpose, whatever its
// context allows. A server that has passed a call on to a leader that hangs waits
// for the answer for 30 to 40 s, also when there is a new leader within 2 s: then
// only a repeated call is answered. So this is half of the 10 s that apid
// gives to a write.
const callTimeout = 5 * time.Second

// listWait is how long a blocked list waits at most. Consul keeps the connection of
// a blocked list open until that time has passed, also when the client was killed.
// So this bounds how long connections of killed daemons count against
// limits.http_max_conns_per_client.
const listWait = 30 * time.Second

// Config says how to reach Consul.
type Config struct {
	// Address is the host:port of an agent's or a server's HTTP API, or several
	// with commas between: the first is used until something goes wrong there,
	// then the next. A session stays with the agent that it was opened at, for it
	// is bound to checks that this agent makes; so the first should be near.
	Address    string
	Token      string
	Datacenter string // default: the agent's
	// TLS speaks HTTPS, with the files below if given.
	TLS      bool
	CAFile   string
	CertFile string
	KeyFile  string
	// Logger is told when a limit of Consul's is reached. Optional.
	Logger *zap.Logger
}

// KV is a key space in Consul. It implements kv.KV.
type KV struct {
	client *api.Client
	pools  *pools
	router *router

	mu sync.Mutex
	// services are those in the catalog, with the session that entered each.
	services map[string]*session
}

var _ kv.KV = (*KV)(nil)

// New returns a client. It does not connect yet.
func New(cfg Config) (*KV, error) {
	hosts := strings.Split(strings.ReplaceAll(cfg.Address, " ", ""), ",")
	if slices.Contains(hosts, "") {
		return nil, fmt.Errorf("consul at %q: an address is missing", cfg.Address)
	}
	c := &api.Config{
		Address: hosts[0], Scheme: "http", Token: cfg.Token, Datacenter: cfg.Datacenter,
		Transport: newTransport(),
	}
	if cfg.TLS {
		c.Scheme = "https"
		c.TLSConfig = api.TLSConfig{CAFile: cfg.CAFile, CertFile: cfg.CertFile, KeyFile: cfg.KeyFile}
	}
	client, err := api.NewClient(c)
	if err != nil {
		return nil, fmt.Errorf("consul at %s: %w", cfg.Address, err)
	}
	// NewClient made the HTTP client, and uses this very one. It has put the TLS
	// settings into the transport.
	p := newPools(c.Transport)
	r := newRouter(p, c.Scheme, hosts)
	log := cfg.Logger
	if log == nil {
		log = zap.NewNop()
	}
	c.HttpClient.Transport = answerTaker{&throttle{next: r, open: p.open.Load, log: log, logs: rate.Sometimes{Interval: limitLogInterval}}}
	return &KV{client: client, pools: p, router: r, services: map[string]*session{}}, nil
}

// Close closes idle connections. Calls that are open end with their contexts.
func (s *KV) Close() error {
	s.pools.closeIdle()
	return nil
}

// Limits returns what one transaction may hold.
func (s *KV) Limits() kv.Limits { return limits }

// Get returns a key as the leader has it.
func (s *KV) Get(ctx context.Context, key string) (kv.Pair, error) {
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	p, _, err := s.client.KV().Get(key, (&api.QueryOptions{RequireConsistent: true}).WithContext(call))
	if err != nil {
		return kv.Pair{}, fmt.Errorf("get %q: %w", key, classify(ctx, err))
	}
	if p == nil {
		return kv.Pair{}, fmt.Errorf("get %q: %w", key, kv.ErrNotFound)
	}
	found, err := pair(p)
	if err != nil {
		return kv.Pair{}, fmt.Errorf("get: %w", err)
	}
	return found, nil
}

// List returns the pairs under a prefix; see kv.KV.
func (s *KV) List(ctx context.Context, prefix string, opt kv.ListOptions) ([]kv.Pair, uint64, error) {
	pairs, index, err := s.list(ctx, prefix, opt)
	if err == nil && opt.After > 0 && index == opt.After {
		// It was woken and nothing has changed. So Consul does also when it was
		// restored from a snapshot: it wakes a list, which answers with what was
		// before, and would then wait for an index that is long in coming.
		return s.list(ctx, prefix, kv.ListOptions{Stale: opt.Stale})
	}
	return pairs, index, err
}

func (s *KV) list(ctx context.Context, prefix string, opt kv.ListOptions) ([]kv.Pair, uint64, error) {
	wait := callTimeout
	if opt.After > 0 {
		// Consul adds up to a sixteenth of jitter to the wait that it is asked for.
		wait = listWait + listWait/16 + callTimeout
		ctx = watching(ctx)
	}
	call, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	call, answer := takeAnswer(call)
	// By default a leader answers that was elected a moment ago and has yet to catch
	// up, which after a restart of all servers is to begin from nothing.
	q := (&api.QueryOptions{WaitIndex: opt.After, WaitTime: listWait, AllowStale: opt.Stale, RequireConsistent: !opt.Stale}).WithContext(call)
	_, meta, err := s.client.KV().List(prefix, q)
	var found api.KVPairs
	if err == nil && answer.status == http.StatusOK {
		err = answer.decode(&found)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("list %q: %w", prefix, classify(ctx, err))
	}
	pairs := make([]kv.Pair, len(found))
	for i, p := range found {
		if pairs[i], err = pair(p); err != nil {
			return nil, 0, fmt.Errorf("list %q: %w", prefix, err)
		}
	}
	// An index of 0 would make the next call not block (Consul's documentation
	// of blocking queries asks for this).
	return pairs, max(meta.LastIndex, 1), nil
}

func pair(p *api.KVPair) (kv.Pair, error) {
	value, err := unpack(p.Value)
	if err != nil {
		return kv.Pair{}, fmt.Errorf("key %q: %w", p.Key, err)
	}
	return kv.Pair{Key: p.Key, Value: value, Index: p.ModifyIndex, Session: p.Session}, nil
}
