// Package backend is the store as the services of apid use it for a request. It
// waits until the tables are loaded, bounds how long a request waits, marks
// answers that may be old, and turns errors into the statuses that clients see.
package backend

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/objects"
	"github.com/musterhq/muster/internal/auth"
	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// Options are what a backend needs.
type Options struct {
	Store  *store.Store
	Tables *state.Tables
	View   *objects.View
	Log    *zap.Logger
	// WriteTimeout bounds a request's wait for the store if the client sets no
	// deadline of its own.
	WriteTimeout time.Duration
	// ReadyTimeout bounds how long a request waits for a store that is still
	// loading its tables.
	ReadyTimeout time.Duration
}

// Backend serves the requests of one replica of apid.
type Backend struct {
	Tables *state.Tables
	View   *objects.View
	Log    *zap.Logger

	opt    Options
	store  *store.Store
	writes writes
	// stopping ends streams when the replica stops.
	stopping context.Context
	stop     context.CancelFunc
}

// New returns a backend that serves until it is stopped.
func New(opt Options) *Backend {
	b := &Backend{Tables: opt.Tables, View: opt.View, Log: opt.Log, opt: opt, store: opt.Store}
	b.stopping, b.stop = context.WithCancel(context.Background())
	return b
}

// Stop refuses new requests and ends streams.
func (b *Backend) Stop() { b.stop() }

// Finish waits until the writes that have begun have their answers.
func (b *Backend) Finish() { b.writes.finish() }

// Loaded reports whether the tables have been loaded.
func (b *Backend) Loaded() bool { return b.store.Status().Loaded }

// WaitLoaded waits until the tables have been loaded.
func (b *Backend) WaitLoaded(ctx context.Context) error { return b.store.Ready(ctx) }

// Snapshot returns the newest snapshot.
func (b *Backend) Snapshot() *store.Snapshot { return b.store.Snapshot() }

// Sync waits until the snapshot holds what others have written to tables.
func (b *Backend) Sync(ctx context.Context, tables ...store.TableDef) error {
	return b.store.Sync(ctx, tables...)
}

// ReadWhole calls fn with a reader that read, a method of the view, provides. If an
// object lacks its task spec, it waits until all task specs that have been written are
// seen, and calls fn again: the table of specs may be seen later than what refers to it.
func (b *Backend) ReadWhole(ctx context.Context, read func(fn func(*objects.Reader)), fn func(*objects.Reader)) error {
	lacks, sealed := false, error(nil)
	again := func(r *objects.Reader) {
		fn(r)
		lacks, sealed = r.LacksSpec(), r.SealedSpec()
	}
	if read(again); lacks {
		if b.Sync(ctx, b.Tables.Specs) != nil {
			return status.Error(codes.Unavailable, "this API server could not yet read a task spec from the store; try again")
		}
		b.View.Read(again)
	}
	if sealed != nil {
		return status.Error(codes.FailedPrecondition, sealed.Error())
	}
	return nil
}

// Ready waits until the tables have been loaded.
func (b *Backend) Ready(ctx context.Context) error {
	if b.stopping.Err() != nil {
		return errStopping()
	}
	ctx, cancel := context.WithTimeout(ctx, b.opt.ReadyTimeout)
	defer cancel()
	if err := b.store.Ready(ctx); err != nil {
		if away := b.away(); away != "" {
			return status.Error(codes.Unavailable, away+", and nothing was read from it yet; try again")
		}
		return status.Error(codes.Unavailable, "the state is still being loaded from the store; try again")
	}
	b.markStale(ctx)
	return nil
}

// leastStale is the age below which answers are not marked: a change of Consul's
// leader takes longer, and a list that is merely repeated less.
const leastStale = time.Second

// markStale sets the header of an answer that may be old.
func (b *Backend) markStale(ctx context.Context) {
	stale := b.store.Staleness()
	if stale < leastStale {
		return
	}
	// It fails if the answer has begun, or if this is not a call of gRPC's: then
	// there is no header to set.
	_ = grpc.SetHeader(ctx, metadata.Pairs(musterv1.StaleHeader, strconv.Itoa(int(stale.Seconds()))))
}

// away says that the store has not answered for a while, "" if it has.
func (b *Backend) away() string {
	stale := b.store.Staleness()
	if stale < leastStale {
		return ""
	}
	return fmt.Sprintf("the store has not answered for %v", stale.Round(time.Second))
}

func errStopping() error {
	return status.Error(codes.Unavailable, "this API server is stopping; another one will answer")
}

// Streaming returns a context that also ends when this replica stops.
func (b *Backend) Streaming(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	unhook := context.AfterFunc(b.stopping, cancel)
	return ctx, func() { unhook(); cancel() }
}

// StreamEnd says why a stream has ended.
func (b *Backend) StreamEnd(ctx context.Context, err error) error {
	if b.stopping.Err() != nil {
		return errStopping()
	}
	if ctx.Err() != nil {
		return status.FromContextError(ctx.Err()).Err()
	}
	return err
}

// Fail turns an error into the status that a client sees. An error that a client
// can do nothing about is logged.
func (b *Backend) Fail(operation string, err error) error {
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
		away := b.away()
		if away == "" {
			away = "the store is not available"
		}
		return status.Error(codes.Unavailable, away+"; "+outcome)
	case errors.Is(err, context.Canceled):
		return status.Error(codes.Canceled, "the request was cancelled; "+outcome)
	case errors.Is(err, context.DeadlineExceeded):
		return status.Error(codes.DeadlineExceeded, "the store did not answer in time; "+outcome)
	default:
		b.Log.Error("request failed", zap.String("operation", operation), zap.Error(err))
		return status.Error(codes.Internal, "internal error; the API server's log says more")
	}
}

// Caller names who made the call, for logs and records; "" if that is not known.
func Caller(ctx context.Context) string {
	if caller, ok := auth.CallerOf(ctx); ok {
		return caller.Identity.String()
	}
	return ""
}
