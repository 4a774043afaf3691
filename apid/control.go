package apid

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"go.uber.org/zap"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/objects"
	"github.com/musterhq/muster/apid/rest"
	"github.com/musterhq/muster/apid/validate"
	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/placement"
	"github.com/musterhq/muster/internal/store"
)

// control serves the contract. What it does not define is answered with
// UNIMPLEMENTED: networks, secrets, configs, volumes, rollback.
type control struct {
	*Daemon
	events eventFields
	musterv1.UnimplementedControlServiceServer
}

var _ musterv1.ControlServiceServer = (*control)(nil)

// ready waits until the tables have been loaded.
func (d *Daemon) ready(ctx context.Context) error {
	if d.stopping.Err() != nil {
		return errStopping()
	}
	ctx, cancel := context.WithTimeout(ctx, d.cfg.ReadyTimeout)
	defer cancel()
	if err := d.store.Ready(ctx); err != nil {
		if away := d.away(); away != "" {
			return status.Error(codes.Unavailable, away+", and nothing was read from it yet; try again")
		}
		return status.Error(codes.Unavailable, "the state is still being loaded from the store; try again")
	}
	d.markStale(ctx)
	return nil
}

// StaleHeader marks answers that may be old.
const StaleHeader = rest.StaleHeader

// leastStale is below what an answer is not marked: a change of Consul's leader,
// say, takes longer than that, and a list that is merely repeated less.
const leastStale = time.Second

// markStale says so in the answer's header if it may be old.
func (d *Daemon) markStale(ctx context.Context) {
	stale := d.store.Staleness()
	if stale < leastStale {
		return
	}
	// It fails where there is nobody to tell: the answer has been begun, or it is
	// no call of gRPC's.
	_ = grpc.SetHeader(ctx, metadata.Pairs(StaleHeader, strconv.Itoa(int(stale.Seconds()))))
}

// away says that the store is away, if it has been for a while.
func (d *Daemon) away() string {
	stale := d.store.Staleness()
	if stale < leastStale {
		return ""
	}
	return fmt.Sprintf("the store has not answered for %v", stale.Round(time.Second))
}

func errStopping() error {
	return status.Error(codes.Unavailable, "this API server is stopping; another one will answer")
}

// fail turns an error into the status that a client sees. What the client can
// do nothing about is logged.
func (d *Daemon) fail(doing string, err error) error {
	var known interface{ GRPCStatus() *status.Status }
	var ambiguous *objects.Ambiguous
	switch {
	case err == nil:
		return nil
	case errors.As(err, &known):
		return known.GRPCStatus().Err()
	case errors.As(err, &ambiguous):
		return status.Error(codes.InvalidArgument, ambiguous.Error())
	case errors.Is(err, kv.ErrTooLarge):
		return status.Error(codes.InvalidArgument, "the request is larger than the store can hold; nothing was changed")
	}
	outcome := "nothing was changed"
	if errors.Is(err, store.ErrOutcomeUnknown) {
		outcome = "the change may or may not have been made: read before trying again"
	}
	switch {
	case errors.Is(err, store.ErrClosed):
		return status.Error(codes.Unavailable, "this API server is stopping; "+outcome)
	case errors.Is(err, kv.ErrUnavailable):
		away := d.away()
		if away == "" {
			away = "the store is not available"
		}
		return status.Error(codes.Unavailable, away+"; "+outcome)
	case errors.Is(err, context.Canceled):
		return status.Error(codes.Canceled, "the request was cancelled; "+outcome)
	case errors.Is(err, context.DeadlineExceeded):
		return status.Error(codes.DeadlineExceeded, "the store did not answer in time; "+outcome)
	default:
		d.log.Error("request failed", zap.String("doing", doing), zap.Error(err))
		return status.Error(codes.Internal, "internal error; the API server's log says more")
	}
}

func notFound(kind, ref string) error {
	if ref == "" {
		return validate.Field(kind, "is required: an id, a name, or a unique prefix of an id")
	}
	s, err := status.Newf(codes.NotFound, "there is no %s %q", kind, clip(ref)).
		WithDetails(&errdetails.ResourceInfo{ResourceType: kind, ResourceName: clip(ref)})
	if err != nil {
		return status.Errorf(codes.NotFound, "there is no such %s", kind)
	}
	return s.Err()
}

func nameTaken(kind, name string) error {
	s, err := status.Newf(codes.AlreadyExists, "a %s called %q already exists; names are compared without regard to case", kind, name).
		WithDetails(&errdetails.ResourceInfo{ResourceType: kind, ResourceName: name})
	if err != nil {
		return status.Errorf(codes.AlreadyExists, "a %s of this name already exists", kind)
	}
	return s.Err()
}

// stale refuses an update that was decided on another version than the current
// one.
func stale(kind, name string, decided, current uint64) error {
	return status.Errorf(codes.Aborted,
		"%s %q is at version %d, and the update was decided on version %d: read it again, and decide again", kind, name, current, decided)
}

// clip keeps what a user sent from filling an error.
func clip(s string) string {
	const most = 100
	if len(s) <= most {
		return s
	}
	r := []rune(s)
	if len(r) <= most {
		return s
	}
	return string(r[:most]) + "..."
}

// catalogCache keeps what the nodes offer until a node changes.
type catalogCache struct {
	mu      sync.Mutex
	at      uint64
	catalog *validate.Catalog
}

func (d *Daemon) executors() *validate.Catalog {
	d.catalog.mu.Lock()
	defer d.catalog.mu.Unlock()
	d.view.Read(func(r *objects.Reader) {
		if d.catalog.catalog != nil && d.catalog.at == r.NodesChanged() {
			return
		}
		d.catalog.at = r.NodesChanged()
		d.catalog.catalog = validate.NewCatalog(func(yield func(*placement.Node) bool) {
			r.Nodes("", func(n *objects.Node) bool { return yield(placement.NewNode(n.ID, n.State, n.Record)) })
		})
	})
	return d.catalog.catalog
}
