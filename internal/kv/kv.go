// Package kv is the contract between Muster and the key-value store that holds its
// state: a flat key space with compare-and-set transactions, blocking lists, sessions
// and locks. It is the part of Consul's model that Muster uses.
// [github.com/musterhq/muster/internal/kv/consul] implements it with Consul, and
// [github.com/musterhq/muster/internal/kv/embedded] within one process. Both pass the
// suite in [github.com/musterhq/muster/internal/kv/kvtest].
//
// # Vocabulary
//
// Every change of the key space has an index, a number that increases with each
// committed transaction. A [Pair] has the index of the transaction that last wrote it.
// A session represents one live process. A lock is a key that names the session that
// holds it. Locks only decide who should work. Compare-and-set decides what is true, so
// a client that lost a lock without noticing can do no harm.
//
// # Rules for every implementation
//
//   - All methods may be called concurrently. When the context ends, they return an
//     error that wraps its cause.
//   - Values are never shared: an implementation neither keeps the values that it is
//     given nor changes the values that it returns.
//   - Transactions are atomic. List and read-only transactions show a consistent state.
//   - Answers are durable: neither a read nor a write returns a state that the store
//     could lose in a crash, and no index is used twice.
//   - Errors wrap one of this package's classes, so that callers can use errors.Is.
package kv

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Classes of errors. An error that wraps none of them is a bug or a misconfiguration.
// Repeating the call does not help then.
var (
	// ErrNotFound is returned by Get for a key that does not exist.
	ErrNotFound = errors.New("key not found")
	// ErrConflict says that a check of the transaction failed, and that nothing was
	// written. Read again and decide again.
	ErrConflict = errors.New("transaction conflict")
	// ErrTooLarge says that a request exceeds the Limits. Nothing was written.
	ErrTooLarge = errors.New("request over the store's limits")
	// ErrUnavailable says that the store cannot be reached, has no leader, or did not
	// answer in time. A write with this error may have been applied: read before you
	// repeat it.
	ErrUnavailable = errors.New("store unavailable")
	// ErrLimited is the ErrUnavailable of a store that refuses requests because of one of
	// its limits. Nothing was written.
	ErrLimited = fmt.Errorf("store limit reached: %w", ErrUnavailable)
	// ErrSessionLost says that the session has ended and that its locks are free.
	ErrSessionLost = errors.New("session lost")
)

// Pair is one key and its value.
type Pair struct {
	Key   string
	Value []byte
	// Index is the index of the transaction that last wrote the key. CAS compares it. It
	// is never 0 for a key that exists.
	Index uint64
	// Session is the session that holds the key as a lock, or "".
	Session string
}

// Verb is the kind of an Op.
type Verb uint8

// The verbs. Get reads, the checks can make the transaction conflict, and the others
// write. Writing the present value again is not a change: it wakes no list, and the key
// keeps its Index.
const (
	// Get reads a key; the results include its Pair. A missing key is not an error. It is
	// not among the results.
	Get Verb = iota + 1
	// Set writes a key unconditionally.
	Set
	// CAS writes a key if its Index is still Op.Index; 0 means that the key
	// must not exist.
	CAS
	// Delete removes a key if it exists.
	Delete
	// DeleteCAS removes a key if its Index is still Op.Index. A missing key is not a
	// conflict.
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

// ListOptions configure a list.
type ListOptions struct {
	// After blocks the call until a transaction with a greater index has changed
	// something under the prefix, or until a long wait has ended (see List). With 0, the
	// call does not block.
	After uint64
	// Stale allows any server to answer, even one that lags. Otherwise the answer includes
	// every change that was acknowledged before the call.
	Stale bool
}

// KV is a key space.
type KV interface {
	// Get returns a key, including every change that was acknowledged before the call, or
	// ErrNotFound.
	Get(ctx context.Context, key string) (Pair, error)

	// List returns all pairs whose key starts with prefix, sorted by key, and the index to
	// pass as After to wait for the next change. A blocked list may return without a
	// change, after some minutes or spuriously: compare, and call again. If the returned
	// index is smaller than After, the store was restored from a snapshot: start again
	// with 0.
	List(ctx context.Context, prefix string, opt ListOptions) ([]Pair, uint64, error)

	// Txn applies the operations atomically, in order. The results are the pairs of the
	// Get, Set and CAS operations in their order, without the Value for Set and CAS, and
	// without the keys that Get does not find. A transaction with nothing but Gets is a
	// consistent read.
	Txn(ctx context.Context, ops []Op) ([]Pair, error)

	// Limits returns the limits of one transaction.
	Limits() Limits

	// NewSession opens a session.
	NewSession(ctx context.Context, cfg SessionConfig) (Session, error)

	// Describe describes the store. With an error, it still returns what is known.
	Describe(ctx context.Context) (Description, error)

	// Processes returns the processes in the catalog that sessions have registered under
	// the name of a Service, including dead ones. A store without a catalog has none.
	Processes(ctx context.Context, service string) ([]Process, error)
}

// SessionConfig describes a session and the process that it stands for.
type SessionConfig struct {
	// Name is shown to people: the daemon's name and instance, "schedulerd/ab12".
	Name string
	// TTL ends the session if it is not renewed for this long. The implementation renews
	// it. It only matters if the health check does not notice the death of the process.
	// The default and Consul's minimum are 10 s.
	TTL time.Duration
	// Service, if given, registers the process in the store's catalog of
	// services, with a health check, and binds the session to the check: when
	// the check fails, the session ends at once instead of after the TTL.
	// Without a catalog (the embedded store) it is ignored.
	Service *Service
}

// Service describes a process for the catalog. A process that was registered earlier with
// the same CheckAddress counts as dead, because another one listens there now.
type Service struct {
	ID      string            // unique: "muster-schedulerd-ab12"
	Name    string            // "muster-schedulerd"
	Address string            // host at which others reach it
	Port    int               // its gRPC port
	Tags    []string          // for catalog queries
	Meta    map[string]string // version and the like
	// CheckAddress is the host:port that the store dials (TCP) to check whether the
	// process is alive.
	CheckAddress string
	// CheckInterval is the time between dials, on average; the default is
	// 250 ms. A killed process is noticed at the next dial.
	CheckInterval time.Duration
	// Silence is how long the process may fail to report to the store until it counts as
	// dead although its port accepts connections: it may be stopped, hang, or be unable to
	// reach the store. The default is 3 s. With less, a process on a busy machine could
	// count as dead.
	Silence time.Duration
}

// Session represents one live process, which can hold locks. It is renewed until Close.
type Session interface {
	// ID returns the id of the session, as in Pair.Session.
	ID() string
	// Lost returns a channel that is closed when this process learns that the session has
	// ended, by Close or otherwise.
	Lost() <-chan struct{}
	// Acquire tries to acquire the lock at key and to store value there. It reports
	// whether this session holds the lock now, which is also true if it held the lock
	// before. It does not wait: list the key to see when it is free. A free key can still
	// be refused for a moment (Consul's lock delay), so try again soon. The key is removed
	// when the session ends.
	Acquire(ctx context.Context, key string, value []byte) (bool, error)
	// Release releases the lock and removes the key. Releasing a lock that the session
	// does not hold is not an error.
	Release(ctx context.Context, key string) error
	// Close ends the session, frees its locks at once, and removes the service from the
	// catalog.
	Close(ctx context.Context) error
}
