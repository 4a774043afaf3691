// Package consul keeps the kv in HashiCorp Consul, through its HTTP API. No
// type of Consul's leaves the package.
//
// Values of some length are kept compressed, for what Consul makes of them (JSON,
// base64) costs more than compression does.
//
// Two properties of Consul's are worth knowing. A list that waits for a prefix
// under which there is no key yet is looked at anew with every write nearby, so
// many of those are dear. And an agent allows 200 connections from one address
// (http_max_conns_per_client); every list that waits takes one.
package consul

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

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
// only a call that is made anew is answered. So this is half of the 10 s that apid
// gives to a write.
const callTimeout = 5 * time.Second

// listWait is how long a blocked list waits at most.
const listWait = 5 * time.Minute

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
}

// KV is a key space in Consul. It implements kv.KV.
type KV struct {
	client    *api.Client
	transport *http.Transport
	router    *router

	mu sync.Mutex
	// services are those in the catalog, with the session that entered each.
	services map[string]*session
}

var _ kv.KV = (*KV)(nil)

// New returns a client. It does not connect yet.
func New(cfg Config) (*KV, error) {
	// A server that vanishes is noticed by a blocked list after some 20 s.
	dialer := &net.Dialer{
		Timeout:         3 * time.Second,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 5 * time.Second, Count: 3},
	}
	hosts := strings.Split(strings.ReplaceAll(cfg.Address, " ", ""), ",")
	if slices.Contains(hosts, "") {
		return nil, fmt.Errorf("consul at %q: an address is missing", cfg.Address)
	}
	c := &api.Config{
		Address: hosts[0], Scheme: "http", Token: cfg.Token, Datacenter: cfg.Datacenter,
		Transport: &http.Transport{
			DialContext:           dialer.DialContext,
			TLSHandshakeTimeout:   5 * time.Second,
			MaxIdleConns:          256,
			MaxIdleConnsPerHost:   256,
			IdleConnTimeout:       time.Minute,
			DisableCompression:    true,
			ResponseHeaderTimeout: 0, // blocked lists answer late
		},
	}
	if cfg.TLS {
		c.Scheme = "https"
		c.TLSConfig = api.TLSConfig{CAFile: cfg.CAFile, CertFile: cfg.CertFile, KeyFile: cfg.KeyFile}
	}
	client, err := api.NewClient(c)
	if err != nil {
		return nil, fmt.Errorf("consul at %s: %w", cfg.Address, err)
	}
	// NewClient made the HTTP client, and uses this very one.
	r := newRouter(c.HttpClient.Transport, c.Scheme, hosts)
	c.HttpClient.Transport = answerTaker{r}
	return &KV{client: client, transport: c.Transport, router: r, services: map[string]*session{}}, nil
}

// Close closes idle connections. Calls that are open end with their contexts.
func (s *KV) Close() error {
	s.transport.CloseIdleConnections()
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
