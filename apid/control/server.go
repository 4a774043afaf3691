// Package control serves the control API: it takes what users ask for, checks it,
// and writes it into the tables that apid owns; and it shows users the objects that
// the records of all daemons make up.
//
// All kinds of objects are served by the same code (type kind); a file for each kind
// holds what is special about it.
package control

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/authority"
	"github.com/musterhq/muster/apid/backend"
	"github.com/musterhq/muster/apid/blobs"
	"github.com/musterhq/muster/apid/logs"
	"github.com/musterhq/muster/apid/objects"
	"github.com/musterhq/muster/apid/probes"
	"github.com/musterhq/muster/apid/sealing"
	clusterstatus "github.com/musterhq/muster/apid/status"
	"github.com/musterhq/muster/apid/tokens"
	"github.com/musterhq/muster/apid/validate"
	"github.com/musterhq/muster/internal/placement"
	"github.com/musterhq/muster/internal/shards"
)

// Subsystem is the work that the instances of one daemon share out.
type Subsystem struct {
	Name string
	*shards.Directory
}

// Options are what the server needs besides the store.
type Options struct {
	// Member is this replica.
	Member shards.Member
	// Subsystems are all subsystems, in the order of the loop.
	Subsystems []Subsystem
	// Unsharded is the subsystem whose one shard is not shown.
	Unsharded string
	Looker    *clusterstatus.Looker
	Logs      *logs.Broker
	Prober    *probes.Prober
	Tokens    *tokens.Service
	Authority *authority.Authority
	Sealer    *sealing.Sealer
	// Watchers counts the watches that are open.
	Watchers prometheus.Gauge
	// Bookmark is how often a quiet watch is sent a fresh resume token.
	Bookmark time.Duration
	// MaxConfigBytes bounds the data of all configs together, that of all secrets, and the
	// contents of all stacks; 0 means no limit.
	MaxConfigBytes uint64
}

// unimplemented answers calls that Server does not define. It lies one level deeper
// than what Server embeds, so that those win.
type unimplemented struct {
	musterv1.UnimplementedControlServiceServer
}

// Server serves the contract. Volumes, which it does not define, are answered with
// UNIMPLEMENTED.
type Server struct {
	unimplemented
	*tokens.Service
	*authority.Control
	*backend.Backend

	opt      Options
	validate *validate.Validator
	catalog  catalogCache
	events   eventFields
	blobs    *blobs.Blobs
	// sealed holds the data of secrets, and contents those of stacks.
	sealed, contents *blobs.Blobs

	services *kind[*recordv1.Service, *objects.Service, *musterv1.Service]
	tasks    *kind[*recordv1.Task, *objects.Task, *musterv1.Task]
	nodes    *kind[*recordv1.Node, *objects.Node, *musterv1.Node]
	clusters *kind[*recordv1.Cluster, *objects.Cluster, *musterv1.Cluster]
	configs  *kind[*recordv1.Config, *objects.Config, *musterv1.Config]
	secrets  *kind[*recordv1.Secret, *objects.Secret, *musterv1.Secret]
	stacks   *kind[*recordv1.Stack, *objects.Stack, *musterv1.Stack]
	networks *kind[*recordv1.Network, *objects.Network, *musterv1.Network]
}

var _ musterv1.ControlServiceServer = (*Server)(nil)

// New returns the server of one replica.
func New(b *backend.Backend, opt Options) *Server {
	s := &Server{
		Service: opt.Tokens, Control: opt.Authority.Control(), Backend: b,
		opt: opt, validate: validate.New(parseConstraints), events: newEventFields(),
		blobs:  blobs.New(b, b.Tables.Blobs, "config", opt.MaxConfigBytes),
		sealed: blobs.New(b, b.Tables.SealedBlobs, "secret", opt.MaxConfigBytes), contents: blobs.New(b, b.Tables.StackBlobs, "stack", opt.MaxConfigBytes),
	}
	s.services, s.tasks, s.nodes, s.clusters = s.serviceKind(), s.taskKind(), s.nodeKind(), s.clusterKind()
	s.configs, s.secrets, s.stacks, s.networks = s.configKind(), s.secretKind(), s.stackKind(), s.networkKind()
	return s
}

func parseConstraints(list []string) error {
	_, err := placement.ParseConstraints(list)
	return err
}

// catalogCache keeps what the nodes offer until a node changes.
type catalogCache struct {
	mu      sync.Mutex
	at      uint64
	catalog *validate.Catalog
}

func (s *Server) executors() *validate.Catalog {
	s.catalog.mu.Lock()
	defer s.catalog.mu.Unlock()
	s.View.Read(func(r *objects.Reader) {
		if s.catalog.catalog != nil && s.catalog.at == r.NodesChanged() {
			return
		}
		s.catalog.at = r.NodesChanged()
		s.catalog.catalog = validate.NewCatalog(func(yield func(*placement.Node) bool) {
			r.Nodes("", func(n *objects.Node) bool { return yield(placement.NewNode(n.ID, n.State, n.Record)) })
		})
	})
	return s.catalog.catalog
}
