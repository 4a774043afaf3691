// Package daemon holds what all of Muster's daemons share: settings from flags, environment
// and file; logs; metrics, health and pprof on one operations port; a gRPC server and
// clients with the credentials of the settings; the daemon's entry in the store's catalog;
// and an orderly end.
//
// A daemon's own package only knows [Env], which holds everything that it works with. It
// can therefore run in one process with all the others (muster dev, tests, simulation) just
// as on its own.
package daemon

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/musterhq/muster/internal/auth"
	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/shards"
	"github.com/musterhq/muster/internal/tracing"
)

// Prefix is the default of [Env.Prefix].
const Prefix = "muster"

// Env is what a daemon works with. The daemon's package has
//
//	func New(env daemon.Env, cfg Config) (*Daemon, error) // validates, registers its gRPC services, starts nothing
//	func (d *Daemon) Run(ctx context.Context) error       // works until ctx ends, and has then ended everything it began
//	func (d *Daemon) View() daemon.View                   // what it sees of the store
type Env struct {
	// KV is where the cluster's state lives.
	KV kv.KV
	// Prefix begins all keys. One Consul can hold several clusters.
	Prefix string
	// Member describes this replica to others.
	Member shards.Member
	// Session opens a session that represents this process. It is called again after a
	// session was lost.
	Session func(context.Context) (kv.Session, error)
	// Logger is named after the daemon.
	Logger *zap.Logger
	// Metrics registers the daemon's metrics.
	Metrics prometheus.Registerer
	// Tracer makes spans of what a user's call causes. A nil tracer makes none.
	Tracer *tracing.Tracer
	// Guard decides who may call. A nil guard admits everyone.
	Guard *auth.Guard
	// Server registers the daemon's gRPC services. It serves while Run runs.
	Server grpc.ServiceRegistrar
	// Dial connects to another daemon, with this one's credentials. It does not
	// block. The caller closes the connection.
	Dial func(address string) (*grpc.ClientConn, error)
}
