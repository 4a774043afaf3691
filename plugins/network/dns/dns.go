// Package dns is the name server that tasks on networks ask. A network plugin tells it
// what the networks consist of and which tasks are attached, and hands it a pair of
// sockets for each network.
//
// # Names
//
// The server knows the asking task by the address that it asks from, and answers for
// all networks of the task, in their order: the first network on which a name
// is known wins. Upper and lower case are the same.
//
//   - SERVICE, or an alias of it: its virtual addresses, or, in mode DNSRR, those of
//     all its tasks;
//   - tasks.SERVICE: the addresses of all its tasks in either mode;
//   - SERVICE.SLOT.ID (of global services SERVICE.NODE.ID): the address of a task.
//     SERVICE.SLOT: those of the tasks in a slot;
//   - an alias of a task that is attached on this node, unless a service has the name;
//   - each of these followed by .NETWORK: on that network only;
//   - _PORT._PROTOCOL.SERVICE: SRV records for a named port;
//   - addresses, as PTR records.
//
// Only backends count: tasks that run, are healthy and are not about to be stopped. A
// name that has no address at present (a service in mode DNSRR without backends) is
// answered with NXDOMAIN, as in Docker Swarm, and is not asked of anyone else. A name
// that has only addresses of the other family is answered with NOERROR and no records.
// Answers hold at most [MaxAddresses] addresses, in random order, and have a TTL of
// one second: less than the delay between the removal of a backend and its stop.
//
// # Everything else
//
// Other names are asked of the host's resolvers, for tasks that are on a network that is
// not internal. For other tasks they do not exist: a query could carry data out.
//
// # Limits
//
// A task that asks too much loses only its own queries: its rate, its forwarded queries
// that are open, and its TCP connections are limited.
package dns

import (
	"context"
	"net"
	"net/netip"
	"sync/atomic"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
)

// Limits.
const (
	// MaxAddresses is the number of addresses in an answer. An answer with more does
	// not fit a message.
	MaxAddresses = 2000
	// maxPorts is the number of SRV records in an answer.
	maxPorts = 250
	// ttl is in seconds.
	ttl = 1
	// maxUDP is the largest answer over UDP in bytes that is sent without being
	// fragmented on common networks.
	maxUDP = 1232
	// defaultRate and the following are for each task.
	defaultRate     = 2000
	defaultForwards = 32
	maxConnections  = 16
	// reservedForwards are a task's own. It shares the others with all tasks of the node,
	// which have defaultAllForwards.
	reservedForwards   = 4
	defaultAllForwards = 512
)

// Config configures a Server. The zero value forwards to the resolvers of the process's
// own network namespace.
type Config struct {
	// Self is the address at which tasks ask the server. It is never forwarded to.
	Self netip.Addr
	// ResolvConf is the file with the host's resolvers; "" is /etc/resolv.conf. It is
	// read again when it has changed.
	ResolvConf string
	// Dial opens a connection to a resolver; nil opens it in the namespace of the
	// process, where the host's loopback addresses can be reached.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Rate is how many queries a second a task may make; 0 is 2000.
	Rate int
	// Forwards is how many forwarded queries of a task may be open at once; 0 is 32.
	Forwards int
	// AllForwards is how many of all tasks may be open at once beyond the first four of
	// each; 0 is 512.
	AllForwards int
	// Logger may be nil.
	Logger *zap.Logger
}

// Server answers queries of the tasks of a node. All methods may be called at the same
// time.
type Server struct {
	log     *zap.Logger
	zone    *zone
	forward *forwarder
	counts  counts
}

// counts are what Stats returns.
type counts struct {
	answers, forwarded, cached, failures, refused, dropped atomic.Uint64
}

// Stats are counts since the server was made.
type Stats struct {
	// Answers are responses with data or the statement that there is none, whether from
	// the zone, the cache or a resolver.
	Answers uint64
	// Forwarded are the queries that went to a resolver, and Cached those that the
	// cache answered.
	Forwarded, Cached uint64
	// Failures are responses that say that the server could not answer.
	Failures uint64
	// Refused are responses to queries of unknown senders and of kinds that the server
	// does not answer.
	Refused uint64
	// Dropped are queries beyond a task's rate, which get no response.
	Dropped uint64
}

// New makes a server that knows no networks yet.
func New(cfg Config) *Server {
	if cfg.Logger == nil {
		cfg.Logger = zap.NewNop()
	}
	if cfg.ResolvConf == "" {
		cfg.ResolvConf = "/etc/resolv.conf"
	}
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{}).DialContext
	}
	limits := limits{rate: orDefault(cfg.Rate, defaultRate), forwards: orDefault(cfg.Forwards, defaultForwards)}
	return &Server{
		log:     cfg.Logger,
		zone:    newZone(limits),
		forward: newForwarder(cfg, orDefault(cfg.AllForwards, defaultAllForwards)),
	}
}

func orDefault(n, otherwise int) int {
	if n > 0 {
		return n
	}
	return otherwise
}

// Apply takes over networks, services and backends of a valid request, as the SDK for
// network plugins passes it on.
func (s *Server) Apply(request *networkv1.ApplyRequest) { s.zone.apply(request) }

// Attach makes a task known by its addresses. Attach of a task that is attached replaces
// what was known of it.
func (s *Server) Attach(request *networkv1.AttachRequest) { s.zone.attach(request) }

// Detach makes a task unknown.
func (s *Server) Detach(taskID string) { s.zone.detach(taskID) }

// Serve answers queries that arrive at sockets of a network, which it closes in the end.
// It returns nil when the context has ended.
func (s *Server) Serve(ctx context.Context, networkID string, udp *net.UDPConn, tcp net.Listener) error {
	h := &handler{server: s, network: networkID}
	var group errgroup.Group
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	group.Go(func() error {
		defer cancel()
		return serve(ctx, h.udpServer(udp), udp)
	})
	group.Go(func() error {
		defer cancel()
		return serve(ctx, h.tcpServer(tcp), tcp)
	})
	return group.Wait()
}

// Stats returns the counts.
func (s *Server) Stats() Stats {
	return Stats{
		Answers: s.counts.answers.Load(), Forwarded: s.counts.forwarded.Load(), Cached: s.counts.cached.Load(),
		Failures: s.counts.failures.Load(), Refused: s.counts.refused.Load(), Dropped: s.counts.dropped.Load(),
	}
}
