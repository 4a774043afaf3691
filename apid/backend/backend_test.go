package backend_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	"github.com/musterhq/muster/apid/backend"
	"github.com/musterhq/muster/apid/backend/backendtest"
	"github.com/musterhq/muster/apid/objects"
	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/store"
)

// gate is a store whose transactions can be held up.
type gate struct {
	kv.KV
	mu   sync.Mutex
	held chan struct{}
}

func (g *gate) hold() (release func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	held := make(chan struct{})
	g.held = held
	return func() { close(held) }
}

func (g *gate) Txn(ctx context.Context, ops []kv.Op) ([]kv.Pair, error) {
	g.mu.Lock()
	held := g.held
	g.mu.Unlock()
	if held != nil {
		select {
		case <-held:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return g.KV.Txn(ctx, ops)
}

// start returns a backend whose transactions can be held up.
func start(t *testing.T) (*backend.Backend, *gate) {
	t.Helper()
	g := &gate{}
	b := backendtest.StartWith(t, func(space kv.KV) kv.KV {
		g.KV = space
		return g
	})
	return b, g
}

func putName(b *backend.Backend, ctx context.Context) error {
	ctx, cancel := b.Writing(ctx)
	defer cancel()
	return b.Fail("put", b.Update(ctx, func(tx *store.Tx) error {
		b.Tables.Names.Put(tx, "a/x", &recordv1.Name{Id: "1"})
		return nil
	}))
}

func TestWriteEndsBeforeTheDeadlineOfItsClient(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, g := start(t)
		defer g.hold()()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		begun := time.Now()
		err := putName(b, ctx)
		if took := time.Since(begun); status.Code(err) != codes.Unavailable || took >= 5*time.Second || took < 4*time.Second {
			t.Errorf("after %v: %v, want Unavailable shortly before 5s", took, err)
		}
	})
}

func TestFinishWaitsForWrites(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, g := start(t)
		release := g.hold()
		written := make(chan error, 1)
		go func() { written <- putName(b, t.Context()) }()
		synctest.Wait()
		finished := make(chan struct{})
		go func() {
			b.Finish()
			close(finished)
		}()
		synctest.Wait()
		select {
		case <-finished:
			t.Fatal("finished before the write had its answer")
		default:
		}
		release()
		<-finished
		if err := <-written; err != nil {
			t.Errorf("write: %v", err)
		}
	})
}

func TestStoppedBackendRefusesRequestsAndEndsStreams(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, _ := start(t)
		ctx, cancel := b.Streaming(t.Context())
		defer cancel()
		b.Stop()
		<-ctx.Done()
		if err := b.StreamEnd(ctx, nil); status.Code(err) != codes.Unavailable {
			t.Errorf("stream ends with %v, want Unavailable", err)
		}
		if err := b.Ready(t.Context()); status.Code(err) != codes.Unavailable {
			t.Errorf("ready: %v, want Unavailable", err)
		}
	})
}

func TestUpdateWithoutChangeSucceeds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, _ := start(t)
		if err := b.Update(t.Context(), func(*store.Tx) error { return backend.ErrNoChange }); err != nil {
			t.Error(err)
		}
		refused := errors.New("refused")
		if err := b.Update(t.Context(), func(*store.Tx) error { return refused }); !errors.Is(err, refused) {
			t.Errorf("update: %v, want %v", err, refused)
		}
	})
}

func TestFailSaysWhatBecameOfTheChange(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, _ := start(t)
		for name, tt := range map[string]struct {
			err  error
			code codes.Code
			text string
		}{
			"a status":        {status.Error(codes.NotFound, "gone"), codes.NotFound, "gone"},
			"wrapped status":  {fmt.Errorf("tx: %w", status.Error(codes.Aborted, "stale")), codes.Aborted, "stale"},
			"ambiguous":       {&objects.Ambiguous{Ref: "a", Candidates: []string{"ab", "ac"}}, codes.InvalidArgument, "ambiguous"},
			"too large":       {kv.ErrTooLarge, codes.InvalidArgument, "nothing was changed"},
			"closed":          {store.ErrClosed, codes.Unavailable, "stopping"},
			"away":            {kv.ErrUnavailable, codes.Unavailable, "nothing was changed"},
			"unknown outcome": {fmt.Errorf("%w: %w", store.ErrOutcomeUnknown, kv.ErrUnavailable), codes.Unavailable, "may or may not"},
			"cancelled":       {context.Canceled, codes.Canceled, "nothing was changed"},
			"late":            {context.DeadlineExceeded, codes.DeadlineExceeded, "in time"},
			"a mistake":       {errors.New("private detail"), codes.Internal, "internal error"},
		} {
			err := b.Fail("test", tt.err)
			if status.Code(err) != tt.code || !strings.Contains(err.Error(), tt.text) || strings.Contains(err.Error(), "private") {
				t.Errorf("%s: %v, want %v with %q", name, err, tt.code, tt.text)
			}
		}
		if err := b.Fail("test", nil); err != nil {
			t.Errorf("no error: %v", err)
		}
	})
}
