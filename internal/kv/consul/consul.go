// Package consul keeps the kv in HashiCorp Consul, through its HTTP API. No
// type of Consul's leaves the package.
package consul

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/musterhq/muster/internal/kv"
)

// limits are those of a Consul server with its defaults (1.22): 128 operations,
// and 512 KiB of request (txn_max_req_len), in which values are base64 within
// JSON: 4/3 of their length, and up to 250 bytes a operation around them.
var limits = kv.Limits{Ops: 128, Bytes: 360_000}

// callTimeout bounds every call that does not block on purpose, whatever its
// context allows.
const callTimeout = 10 * time.Second

// listWait is how long a blocked list waits at most.
const listWait = 5 * time.Minute

// Config says how to reach Consul.
type Config struct {
	// Address is the host:port of an agent's or a server's HTTP API. Sessions
	// are bound to a check that this agent makes, so it should be near.
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
}

var _ kv.KV = (*KV)(nil)

// New returns a client. It does not connect yet.
func New(cfg Config) (*KV, error) {
	c := &api.Config{
		Address: cfg.Address, Scheme: "http", Token: cfg.Token, Datacenter: cfg.Datacenter,
		Transport: &http.Transport{
			DialContext:           (&net.Dialer{Timeout: 3 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
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
	return &KV{client: client, transport: c.Transport}, nil
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
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	p, _, err := s.client.KV().Get(key, (&api.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return kv.Pair{}, fmt.Errorf("get %q: %w", key, classify(err))
	}
	if p == nil {
		return kv.Pair{}, fmt.Errorf("get %q: %w", key, kv.ErrNotFound)
	}
	return pair(p), nil
}

// List returns the pairs under a prefix; see kv.KV.
func (s *KV) List(ctx context.Context, prefix string, opt kv.ListOptions) ([]kv.Pair, uint64, error) {
	wait := callTimeout
	if opt.After > 0 {
		// Consul adds up to a sixteenth of jitter to the wait that it is asked for.
		wait = listWait + listWait/16 + callTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	q := (&api.QueryOptions{WaitIndex: opt.After, WaitTime: listWait, AllowStale: opt.Stale}).WithContext(ctx)
	found, meta, err := s.client.KV().List(prefix, q)
	if err != nil {
		return nil, 0, fmt.Errorf("list %q: %w", prefix, classify(err))
	}
	pairs := make([]kv.Pair, len(found))
	for i, p := range found {
		pairs[i] = pair(p)
	}
	// An index of 0 would make the next call not block (Consul's documentation
	// of blocking queries asks for this).
	return pairs, max(meta.LastIndex, 1), nil
}

func pair(p *api.KVPair) kv.Pair {
	return kv.Pair{Key: p.Key, Value: p.Value, Index: p.ModifyIndex, Session: p.Session}
}

// Txn applies operations atomically; see kv.KV.
func (s *KV) Txn(ctx context.Context, ops []kv.Op) ([]kv.Pair, error) {
	if len(ops) > limits.Ops {
		return nil, fmt.Errorf("transaction of %d operations, of %d allowed: %w", len(ops), limits.Ops, kv.ErrTooLarge)
	}
	size := 0
	txn := make(api.TxnOps, len(ops))
	for i, op := range ops {
		size += len(op.Value)
		txn[i] = &api.TxnOp{KV: &api.KVTxnOp{Verb: verb(op), Key: op.Key, Value: op.Value, Index: op.Index}}
	}
	if size > limits.Bytes {
		return nil, fmt.Errorf("transaction of %d bytes, of %d allowed: %w", size, limits.Bytes, kv.ErrTooLarge)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	ok, answer, _, err := s.client.Txn().Txn(txn, (&api.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("transaction: %w", classify(err))
	}
	if !ok {
		reason := "unknown reason"
		if answer != nil && len(answer.Errors) > 0 {
			e := answer.Errors[0]
			reason = fmt.Sprintf("operation %d: %s", e.OpIndex, e.What)
		}
		return nil, fmt.Errorf("transaction: %s: %w", reason, kv.ErrConflict)
	}
	return results(ops, answer.Results), nil
}

// verb translates an operation. Consul's get fails the whole transaction for a
// key that is not there, hence get-or-empty.
func verb(op kv.Op) api.KVOp {
	switch op.Verb {
	case kv.Get:
		return api.KVGetOrEmpty
	case kv.Set:
		return api.KVSet
	case kv.CAS:
		return api.KVCAS
	case kv.Delete:
		return api.KVDelete
	case kv.DeleteCAS:
		return api.KVDeleteCAS
	case kv.CheckIndex:
		if op.Index == 0 {
			return api.KVCheckNotExists
		}
		return api.KVCheckIndex
	default:
		// Consul refuses it, naming the verb.
		return api.KVOp(fmt.Sprintf("unknown verb %d", op.Verb))
	}
}

// results picks out what kv.KV promises. Consul answers with an entry for
// each operation but deletions, in order.
func results(ops []kv.Op, found api.TxnResults) []kv.Pair {
	var pairs []kv.Pair
	for _, op := range ops {
		if op.Verb == kv.Delete || op.Verb == kv.DeleteCAS || len(found) == 0 {
			continue
		}
		p := found[0].KV
		if p == nil || p.Key != op.Key {
			continue // a check that answers with nothing
		}
		found = found[1:]
		switch {
		case op.Verb == kv.CheckIndex, p.ModifyIndex == 0:
		case op.Verb == kv.Get:
			pairs = append(pairs, pair(p))
		default:
			pairs = append(pairs, kv.Pair{Key: p.Key, Index: p.ModifyIndex, Session: p.Session})
		}
	}
	return pairs
}

// classify puts an error of the client's into one of kv's classes.
func classify(err error) error {
	var status api.StatusError
	switch {
	case errors.As(err, &status):
		switch {
		case status.Code == http.StatusRequestEntityTooLarge:
			return fmt.Errorf("%w: %w", kv.ErrTooLarge, err)
		case status.Code >= 500 || status.Code == http.StatusTooManyRequests:
			return fmt.Errorf("%w: %w", kv.ErrUnavailable, err)
		}
		return err
	case errors.Is(err, context.Canceled):
		return err
	default:
		// Everything else happened on the way there or back. A deadline that was
		// the caller's own is still found by errors.Is.
		return fmt.Errorf("%w: %w", kv.ErrUnavailable, err)
	}
}
