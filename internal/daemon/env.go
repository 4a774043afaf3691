// Package daemon is the skeleton that all of Muster's daemons stand on:
// settings from flags, environment and file; logs; metrics, health and pprof on
// one operations port; a gRPC server and clients with the credentials of the
// settings; the daemon's entry in the store's catalog; and an orderly end.
//
// A daemon's own package knows nothing of this but [Env]: what it is given to
// work with. So it can be started in one process with all the others
// (muster dev, tests, simulation) just as on its own.
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

// Env is what a daemon is given to work with. The daemon's package has
//
//	func New(env daemon.Env, cfg Config) (*Daemon, error) // validates, registers its gRPC services, starts nothing
//	func (d *Daemon) Run(ctx context.Context) error       // works until ctx ends, and has then ended everything it began
//	func (d *Daemon) View() daemon.View                   // what it sees of the store
type Env struct {
	// KV is where the cluster's state lives.
	KV kv.KV
	// Prefix is that of all keys; one Consul can hold several clusters.
	Prefix string
	// Member is this replica, as others see it.
	Member shards.Member
	// Session opens a session that stands for this process. It is called again
	// when a session was lost.
	Session func(context.Context) (kv.Session, error)
	// Logger is named after the daemon.
	Logger *zap.Logger
	// Metrics takes the daemon's metrics.
	Metrics prometheus.Registerer
	// Tracer makes spans of what a user's call leads to. Nil: none are made.
	Tracer *tracing.Tracer
	// Guard decides who may call. Nil: everyone may.
	Guard *auth.Guard
	// Server takes the daemon's gRPC services. It serves while Run runs.
	Server grpc.ServiceRegistrar
	// Dial connects to another daemon, with this one's credentials. It does not
	// block. The caller closes the connection.
	Dial func(address string) (*grpc.ClientConn, error)
}
