// Package session serves the sessions of workers.
//
// A [Server] accepts streams. It attaches a session to the shard of its node, or
// redirects the worker (admit.go). One goroutine receives while the session lives
// (session.go). Another sends, but only while there is something to send
// (sender.go): what accumulates meanwhile is sent together, and an idle worker
// costs one goroutine less.
//
// A session knows its shard, the directory and the store as interfaces.
//
// Lock order: sentMu, then mu. A session calls its shard and the log broker without
// a lock, and may be called under their locks: its exported methods take only mu,
// except for ObjectsChanged, which takes both, one after the other.
package session

import (
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/types/known/durationpb"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/dispatcherd/internal/assignments"
	"github.com/musterhq/muster/dispatcherd/internal/calls"
	"github.com/musterhq/muster/dispatcherd/internal/liveness"
	"github.com/musterhq/muster/dispatcherd/internal/logs"
	"github.com/musterhq/muster/dispatcherd/internal/probes"
	"github.com/musterhq/muster/dispatcherd/internal/statuses"
	"github.com/musterhq/muster/internal/auth"
	"github.com/musterhq/muster/internal/shards"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
	"github.com/musterhq/muster/internal/tracing"
)

// Shard is the shard of a session's node.
type Shard interface {
	// Attach makes the session its node's session, or returns an error: see
	// [liveness.Tracker.Attach].
	Attach(liveness.Session, *dispatcherv1.Hello) error
	Detach(liveness.Session, liveness.Ending)
	Describe(liveness.Session, *musterv1.NodeDescription)
	AdjustPeriod(s liveness.Session, period time.Duration)
	AssignmentsChanged(node string, keys []string)
	// Write writes reported statuses and acknowledges them.
	Write(statuses.Reporter, statuses.Report)
	// Settle and SettleNode remove statuses whose assignments are gone.
	Settle(keys []string, giveUp statuses.GiveUp)
	SettleNode(node string, giveUp statuses.GiveUp)
}

// Shards are the shards that this replica owns.
type Shards interface {
	// Shard returns the shard of a node, nil if this replica does not own it, and a
	// channel that is closed when that may have changed.
	Shard(node string) (Shard, <-chan struct{})
}

// Directory knows all dispatchers.
type Directory interface {
	Owner(shard int) (shards.Member, bool)
	Members() []shards.Member
	Changed() <-chan struct{}
}

// Store is the part of the store that sessions use.
type Store interface {
	Snapshot() *store.Snapshot
}

// Networks knows the networks of nodes.
type Networks interface {
	assignments.Networks
	// Held returns the networks of which a node has a block.
	Held(node string) []assignments.Object
	// MayOwn reports whether a node may give a task the addresses of an attachment.
	MayOwn(node string, a *musterv1.NetworkAttachment) bool
}

// assignmentReader reads what a worker must be sent.
type assignmentReader interface {
	Offers(r store.Reader, node string) []assignments.Offer
	Offer(r store.Reader, key string) assignments.Offer
}

// Config configures a server.
type Config struct {
	// HelloTimeout limits the time until a session's first message.
	HelloTimeout time.Duration
	// OwnerWait is how long a worker waits when no replica owns its shard.
	OwnerWait time.Duration
	// SettleTimeout is how long a complete set waits for missing objects.
	SettleTimeout time.Duration
	// Limits limit one message of assignments.
	Limits assignments.Limits
	// Instance is this replica.
	Instance  string
	Shards    Shards
	Directory Directory
	Store     Store
	Tables    *state.Tables
	Networks  Networks
	Secrets   assignments.Secrets
	Logs      *logs.Broker
	Probes    *probes.Broker
	Calls     *calls.Group
	// Guard may be nil if connections are in the clear.
	Guard   *auth.Guard
	Tracer  *tracing.Tracer
	Metrics *Metrics
	Logger  *zap.Logger
}

// Server serves sessions.
type Server struct {
	dispatcherv1.UnimplementedDispatcherServiceServer

	cfg         Config
	log         *zap.Logger
	metrics     *Metrics
	assignments assignmentReader
}

// NewServer returns a server.
func NewServer(cfg Config) *Server {
	return &Server{cfg: cfg, log: cfg.Logger, metrics: cfg.Metrics, assignments: assignments.NewReader(cfg.Tables, cfg.Networks, cfg.Secrets)}
}

// Session implements the method of the service. The call returns when the session
// must end, even if the worker receives nothing: that ends the goroutines that send
// and receive.
func (v *Server) Session(st stream) error {
	if !v.cfg.Calls.Join() {
		return calls.ErrStopping
	}
	defer v.cfg.Calls.Leave()
	s := v.newSession(st)
	v.cfg.Calls.Go(func() { s.End(s.receive(), nil) })
	silent := time.AfterFunc(v.cfg.HelloTimeout, s.endWithoutHello)
	defer silent.Stop()
	select {
	case <-s.done:
	case <-v.cfg.Calls.Stopping():
		s.End(calls.ErrStopping, nil)
	}
	return s.conclude()
}

// Redirect returns a message that names the owner of a shard. It names no owner if
// this replica is the last one that is known.
func (v *Server) Redirect(shard int) *dispatcherv1.SessionResponse {
	r := &dispatcherv1.Redirect{Dispatchers: v.Addresses()}
	if m, ok := v.cfg.Directory.Owner(shard); ok && m.Instance != v.cfg.Instance {
		r.Address = m.Address
	}
	return &dispatcherv1.SessionResponse{Message: &dispatcherv1.SessionResponse_Redirect{Redirect: r}}
}

// welcome returns a worker's first message. It is sent again when its content
// changes.
func (v *Server) welcome(node string, period time.Duration) *dispatcherv1.SessionResponse {
	spec := &musterv1.NodeSpec{}
	if e, ok := v.cfg.Tables.Nodes.Get(v.cfg.Store.Snapshot(), node); ok && e.Value.Spec != nil {
		spec = e.Value.Spec
	}
	return &dispatcherv1.SessionResponse{Message: &dispatcherv1.SessionResponse_Welcome{Welcome: &dispatcherv1.Welcome{
		HeartbeatPeriod: durationpb.New(period), Node: spec, Dispatchers: v.Addresses(), AnswersHeartbeats: true,
	}}}
}

// Addresses returns the addresses of all dispatchers.
func (v *Server) Addresses() []string {
	var all []string
	for _, m := range v.cfg.Directory.Members() {
		all = append(all, m.Address)
	}
	return all
}
