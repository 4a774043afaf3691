// Package kv is the contract between Muster and the place where its state
// lives: a flat space of keys with compare-and-set transactions, blocking
// lists, sessions and locks. It is Consul's model, cut down to what Muster
// uses; [github.com/musterhq/muster/internal/kv/consul] fulfils it with Consul
// and [github.com/musterhq/muster/internal/kv/embedded] within one process.
// Both pass the suite in [github.com/musterhq/muster/internal/kv/kvtest].
//
// # Vocabulary
//
// Every change of the key space has an index, a number that grows with each
// committed transaction. A [Pair] carries the index of the transaction that
// last wrote it. A session stands for one live process; a lock is a key that
// names the session that holds it. A lock is advice about who should work:
// what is true is decided by compare-and-set alone, so a client that lost a
// lock without noticing can do no harm.
//
// # Rules for every implementation
//
//   - All methods may be called concurrently. They return when the context
//     ends, with an error that wraps its cause.
//   - Values are never shared: an implementation neither keeps what it was
//     given nor changes what it handed out.
//   - A transaction is applied whole or not at all, and List and a read-only
//     transaction show one moment.
//   - What was answered stays: no answer, of a read or of a write, shows what a
//     crash of the store could still take back, and no index is used twice.
//   - Errors wrap one of this package's classes, so that callers use errors.Is.
package kv

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Classes of errors. An error that wraps none of them is a bug or a
// misconfiguration, and repeating the call will not help.
var (
	// ErrNotFound is returned by Get for a key that does not exist.
	ErrNotFound = errors.New("key not found")
	// ErrConflict says that a check of the transaction did not hold, and that
	// nothing was written. Read again and decide again.
	ErrConflict = errors.New("transaction conflict")
	// ErrTooLarge says that a request is over the Limits. Nothing was written.
	ErrTooLarge = errors.New("request over the store's limits")
	// ErrUnavailable says that the store could not be reached, has no leader,
	// or did not answer in time. A write that ends so may or may not have been
	// applied: read before repeating it.
	ErrUnavailable = errors.New("store unavailable")
	// ErrLimited is an ErrUnavailable of a store that answers, and refuses requests
	// because of one of its limits. Nothing was written.
	ErrLimited = fmt.Errorf("store limit reached: %w", ErrUnavailable)
	// ErrSessionLost says that the session has ended: its locks are free.
	ErrSessionLost = errors.New("session lost")
)

// Pair is one key and its value.
type Pair struct {
	Key   string
	Value []byte
	// Index is that of the transaction that last wrote the key. It is what CAS
	// compares. It is never 0 for a key that exists.
	Index uint64
	// Session is the session that holds the key as a lock, or "".
	Session string
}

// Verb is what an Op does.
type Verb uint8

// The verbs. Get reads; the checks make the transaction conflict; the others
// write. Writing the value that is there already is no change: it wakes no list, and the
// key keeps its Index.
const (
	// Get reads a key; the transaction's result holds its Pair. A missing key
	// is no error: it is simply not among the results.
	Get Verb = iota + 1
	// Set writes a key whatever it held.
	Set
	// CAS writes a key if its Index is still Op.Index; 0 means that the key
	// must not exist.
	CAS
	// Delete removes a key if it is there.
	Delete
	// DeleteCAS removes a key if its Index is still Op.Index. A key that is gone
	// already is no conflict.
	DeleteCAS
	// CheckIndex conflicts unless the key's Index is Op.Index; 0 means that
	// the key must not exist.
	CheckIndex
)

// Op is one step of a transaction.
type Op struct {
	Verb  Verb
	Key   string
	Value []byte // of Set and CAS
	Index uint64 // of CAS, DeleteCAS and CheckIndex
}

// ListOptions say how to list.
type ListOptions struct {
	// After blocks the call until something under the prefix has changed in a
	// transaction with an index greater than After (or the wait has been long:
	// see List). 0 answers at once.
	After uint64
	// Stale lets any server answer, and it may lag. Without it the answer holds
	// every change that was acknowledged before.
	Stale bool
}

// KV is a key space.
type KV interface {
	// Get returns a key with every change that was acknowledged before, or
	// ErrNotFound.
	Get(ctx context.Context, key string) (Pair, error)

	// List returns all pairs whose key starts with prefix, sorted by key, and
	// the index to give as After to wait for the next change. A blocked list
	// may return without a change (after some minutes, or spuriously):
	// compare, and call again. The index returned may be smaller than After
	// when the store was restored from a snapshot: start over with 0.
	List(ctx context.Context, prefix string, opt ListOptions) ([]Pair, uint64, error)

	// Txn applies the operations in order, atomically. The results are the
	// pairs of the Get, Set and CAS operations in their order (those of Set
	// and CAS without the Value); pairs that Get does not find are left out.
	// A transaction of Gets only is a consistent read.
	Txn(ctx context.Context, ops []Op) ([]Pair, error)

	// Limits returns what one transaction may hold.
	Limits() Limits

	// NewSession opens a session.
	NewSession(ctx context.Context, cfg SessionConfig) (Session, error)

	// Describe describes the store itself. With an error, it still returns what it
	// knows.
	Describe(ctx context.Context) (Description, error)

	// Processes returns those processes that sessions have put into the catalog
	// under the name of a Service and that have not been taken out again, dead
	// ones among them. A store without a catalog has none.
	Processes(ctx context.Context, service string) ([]Process, error)
}

// SessionConfig describes a session and the process that it stands for.
type SessionConfig struct {
	// Name is for people: the daemon's name and instance, "schedulerd/ab12".
	Name string
	// TTL ends the session if it is not renewed for this long. The
	// implementation renews it. It is the backstop behind Check; the default
	// is 10 s, and Consul's least is 10 s.
	TTL time.Duration
	// Service, if given, registers the process in the store's catalog of
	// services, with a health check, and binds the session to the check: when
	// the check fails, the session ends at once instead of after the TTL.
	// Without a catalog (the embedded store) it is ignored.
	Service *Service
}

// Service is a process as the catalog knows it. One that was entered with the
// same CheckAddress before is taken to be dead, since another listens there now.
type Service struct {
	ID      string            // unique: "muster-schedulerd-ab12"
	Name    string            // "muster-schedulerd"
	Address string            // host, as others reach it
	Port    int               // its gRPC port
	Tags    []string          // for catalog queries
	Meta    map[string]string // version and the like
	// CheckAddress is the host:port that the store dials (TCP) to see whether
	// the process lives.
	CheckAddress string
	// CheckInterval is the time between dials, on average; the default is
	// 250 ms. A killed process is noticed at the next dial.
	CheckInterval time.Duration
	// Silence is how long the process may say nothing to the store before it
	// counts as dead although its port answers: it is stopped, or hangs, or is cut
	// off. The default is 3 s. Less would take a busy machine for a dead process.
	Silence time.Duration
}

// Session is one live process's claim to its locks. It is renewed until
// Close.
type Session interface {
	// ID names the session, as Pair.Session does.
	ID() string
	// Lost is closed when the session has ended, by Close or against its
	// will, as far as this process can know.
	Lost() <-chan struct{}
	// Acquire takes the lock at key, storing value there, and reports whether
	// it has it. It is true as well if this session already held it (value is
	// stored again). It does not wait: list the key to see when it is free, and
	// note that a free key can still be refused for some moments (Consul's
	// lock delay), so try again soon. A key written by Acquire is removed when
	// its session ends.
	Acquire(ctx context.Context, key string, value []byte) (bool, error)
	// Release gives the lock back and removes the key. Releasing what is not
	// held is no error.
	Release(ctx context.Context, key string) error
	// Close ends the session, frees its locks at once, and takes the service
	// out of the catalog.
	Close(ctx context.Context) error
}
