// Package consul implements kv.KV with HashiCorp Consul's HTTP API. The package does not
// expose types of Consul.
//
// Longer values are compressed, because encoding them for Consul (base64 within JSON)
// costs more than compressing them.
//
// Two properties of Consul matter for callers. A list that waits for a prefix without
// keys is woken by every write nearby, which is expensive. And an agent allows 200
// connections from one address (limits.http_max_conns_per_client). Every waiting list
// occupies one, so there must be few waiting lists. All other calls share a small pool
// (see pools).
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

// limits are derived from the defaults of a Consul server (1.22): 128 operations, and
// requests of 512 KiB (txn_max_req_len). Values are base64 within JSON, which is 4/3 of
// their length. Each operation needs up to 340 bytes more.
var limits = kv.Limits{Ops: 128, Bytes: 360_000}

// callTimeout bounds every non-blocking call in addition to its context. A server that
// has forwarded a call to a hanging leader waits for 30 to 40 s, even if there is a new
// leader within 2 s. Only a repeated call is answered then. So the timeout is half of the
// 10 s that apid allows for a write.
const callTimeout = 5 * time.Second

// listWait is the maximum duration of a blocked list. Consul keeps the connection of a
// blocked list open for that time even if the client was killed. So this bounds how long
// connections of killed daemons count against limits.http_max_conns_per_client.
const listWait = 30 * time.Second

// Config configures the connection to Consul.
type Config struct {
	// Address is the host:port of the HTTP API of an agent or a server, or several
	// separated by commas. The first is used until it fails, then the next. A session
	// stays with the agent that opened it, because this agent makes its checks. So the
	// first should be a local one.
	Address    string
	Token      string
	Datacenter string // default: the agent's
	// TLS enables HTTPS, with the files below if given.
	TLS      bool
	CAFile   string
	CertFile string
	KeyFile  string
	// Logger is optional. It is used when a limit of Consul is reached.
	Logger *zap.Logger
}

// KV is a key space in Consul. It implements kv.KV.
type KV struct {
	client *api.Client
	pools  *pools
	router *router

	mu sync.Mutex
	// services maps registered services to the session that registered them.
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
	// NewClient has created this HTTP client, which it uses, with the TLS settings in its
	// transport.
	p := newPools(c.Transport)
	r := newRouter(p, c.Scheme, hosts)
	log := cfg.Logger
	if log == nil {
		log = zap.NewNop()
	}
	c.HttpClient.Transport = answerTaker{&throttle{next: r, open: p.open.Load, log: log, logs: rate.Sometimes{Interval: limitLogInterval}}}
	return &KV{client: client, pools: p, router: r, services: map[string]*session{}}, nil
}

// Close closes idle connections. Running calls end with their contexts.
func (s *KV) Close() error {
	s.pools.closeIdle()
	return nil
}

// Limits returns the limits of one transaction.
func (s *KV) Limits() kv.Limits { return limits }

// Get reads a key from the leader.
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
		// The list was woken without a change. Consul also does so after it was restored
		// from a snapshot: the list returns the old state, and the next list would wait
		// for an index that Consul reaches much later.
		return s.list(ctx, prefix, kv.ListOptions{Stale: opt.Stale})
	}
	return pairs, index, err
}

func (s *KV) list(ctx context.Context, prefix string, opt kv.ListOptions) ([]kv.Pair, uint64, error) {
	wait := callTimeout
	if opt.After > 0 {
		// Consul adds up to a sixteenth of jitter to the requested wait.
		wait = listWait + listWait/16 + callTimeout
		ctx = watching(ctx)
	}
	call, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	call, answer := takeAnswer(call)
	// By default, a new leader answers before it has caught up. After a restart of all
	// servers, such an answer is empty.
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
	// With an index of 0, the next call would not block. Consul's documentation of blocking
	// queries asks for at least 1.
	return pairs, max(meta.LastIndex, 1), nil
}

func pair(p *api.KVPair) (kv.Pair, error) {
	value, err := unpack(p.Value)
	if err != nil {
		return kv.Pair{}, fmt.Errorf("key %q: %w", p.Key, err)
	}
	return kv.Pair{Key: p.Key, Value: value, Index: p.ModifyIndex, Session: p.Session}, nil
}
