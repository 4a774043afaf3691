// Package session keeps a worker connected to the dispatcher that owns its
// node: it finds it, follows redirects, says hello, sends heartbeats, reports
// and logs, and hands assignments on. While no dispatcher answers it keeps
// trying; nothing else of the worker waits for it.
//
// Reports are batched: see reports.go for when they are sent.
package session

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/backoff"
	"github.com/musterhq/muster/workerd/network"
)

const (
	// firstPause and longestPause bound the pauses between attempts to reach a
	// dispatcher. They double in between, and each is drawn from its upper
	// half, so that workers that lost their dispatcher together do not come
	// back together.
	firstPause   = 100 * time.Millisecond
	longestPause = 2 * time.Second
	// refusedPause is the first pause after a dispatcher said that this worker is
	// not the node, and longestRefusedPause the longest.
	refusedPause        = 10 * time.Second
	longestRefusedPause = 2 * time.Minute
	// takenPatience is for how long another worker must have been the node before
	// this one, which was it earlier, gives its tasks up: they are the other's, or
	// have been replaced.
	takenPatience = time.Minute
	// mostRedirects is how many redirects are followed in a row before a pause.
	mostRedirects = 4
)

// Tasks is what a session needs of the worker's tasks.
type Tasks interface {
	// Begin is called when a session begins: a complete set follows.
	Begin()
	Assign(context.Context, *dispatcherv1.Assignments) error
	// Abandon is called when nothing is assigned to this worker any more: its
	// tasks must be stopped and removed.
	Abandon(ctx context.Context, why string) error
	// Status returns what to report of a task, or nil.
	Status(id string) *dispatcherv1.ReportedStatus
	// IDs returns all tasks.
	IDs() []string
	// Logs calls send with the lines of a task.
	Logs(ctx context.Context, id string, options *musterv1.LogOptions, send func(*musterv1.LogMessage) error) error
}

// Describer knows what the node is.
type Describer interface {
	// Description returns the node as it is now, and a channel that is closed
	// when that has changed.
	Description() (*musterv1.NodeDescription, <-chan struct{})
}

// Volumes are those of the node.
type Volumes interface {
	// List returns the volumes that it finds also if there is an error.
	List(ctx context.Context) ([]*musterv1.NodeVolume, error)
	Remove(ctx context.Context, name string) error
}

// Config is what a client needs.
type Config struct {
	NodeID string
	// Instance tells this process from others with the same node id.
	Instance string
	// Dispatchers are addresses to begin with.
	Dispatchers []string
	// Dial connects to an address. It does not block.
	Dial      func(address string) (*grpc.ClientConn, error)
	Tasks     Tasks
	Describer Describer
	// Reports must be told when there is something new to report of a task.
	Reports *Reports
	// Connected, if set, is called when a dispatcher has sent Welcome, with the worker's
	// address of the connection and the addresses of all dispatchers.
	Connected func(local net.Addr, dispatchers []string)
	// Probe tries whether a service is reached on a network.
	Probe func(ctx context.Context, network, service string) (*network.ProbeResponse, error)
	// Volumes lists and removes the volumes of the node.
	Volumes Volumes
	// WelcomeTimeout bounds the time from dialling to the dispatcher's answer.
	WelcomeTimeout time.Duration
	// AckTimeout bounds the time that a report may go without being
	// acknowledged. A session that is silent for longer is begun again.
	AckTimeout time.Duration
	Logger     *zap.Logger
	// Metrics may be nil.
	Metrics prometheus.Registerer
}

// Client is a worker's side of its sessions.
type Client struct {
	cfg     Config
	log     *zap.Logger
	reports *Reports
	where   *directory
	metrics *metrics
	status  atomic.Pointer[Status]
}

// New returns a client.
func New(cfg Config) *Client {
	c := &Client{
		cfg:     cfg,
		log:     cfg.Logger,
		reports: cfg.Reports,
		where:   newDirectory(cfg.Dispatchers),
		metrics: newMetrics(cfg.Metrics, cfg.Reports.waiting),
	}
	c.status.Store(&Status{})
	return c
}

// Status is whether a worker has a session.
type Status struct {
	// Connected says that a dispatcher has sent Welcome, and the session has not
	// ended.
	Connected bool
	// Since is when that last changed; zero if there was no session yet.
	Since time.Time
	// Err is why there is none, if an attempt has failed.
	Err error
}

// Status returns whether there is a session now.
func (c *Client) Status() Status { return *c.status.Load() }

// redirect is the end of a session whose dispatcher names another.
type redirect struct{ address string }

func (r *redirect) Error() string {
	if r.address == "" {
		return "the node's shard has no owner"
	}
	return "redirected to " + r.address
}

// Run keeps the worker connected until ctx ends, and then says goodbye.
func (c *Client) Run(ctx context.Context) error {
	pauses := backoff.New(firstPause, longestPause)
	failures, redirects := 0, 0
	refusals := newRefusalBackoff()
	for ctx.Err() == nil {
		address := c.where.pick()
		began := time.Now()
		welcomed, err := c.session(ctx, address)
		if ctx.Err() != nil {
			break
		}
		if welcomed {
			failures, redirects = 0, 0
			pauses.Reset()
			refusals.admitted(time.Since(began))
		}
		c.status.Store(&Status{Since: c.Status().Since, Err: err})
		var to *redirect
		reason := refusal(err, welcomed)
		switch {
		case errors.As(err, &to) && to.address != "" && redirects < mostRedirects:
			redirects++
			c.where.prefer(to.address)
			c.metrics.ended.WithLabelValues("redirect").Inc()
			continue
		case reason != dispatcherv1.Refusal_REASON_UNSPECIFIED:
			c.metrics.ended.WithLabelValues("refused").Inc()
			c.refused(ctx, refusals, address, reason, err)
			// It fails only when ctx ends.
			_ = refusals.pauses.Wait(ctx)
			continue
		}
		failures++
		redirects = 0
		c.where.failed(address)
		pause := pauses.Next()
		// Repeated failures are logged less and less often.
		level := zap.DebugLevel
		if failures&(failures-1) == 0 {
			level = zap.WarnLevel
		}
		c.log.Log(level, "no session with the dispatcher",
			zap.String("dispatcher", address), zap.Bool("had_one", welcomed), zap.Int("failures", failures),
			zap.Duration("pause", pause), zap.Error(err))
		c.metrics.ended.WithLabelValues("error").Inc()
		_ = backoff.Sleep(ctx, pause)
	}
	return ctx.Err()
}

// errSilent is the end of a session whose dispatcher does not answer.
type errSilent struct {
	what  string
	after time.Duration
}

func (e *errSilent) Error() string {
	return fmt.Sprintf("dispatcher gave no %s within %s", e.what, e.after)
}
