package control

import (
	"context"
	"errors"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/objects"
)

const (
	// watchBytes bounds one message of a watch: below gRPC's default limit for
	// clients of 4 MB, with room for one event that is larger than usual.
	watchBytes = 1 << 20
	// watchEvents bounds how long the view is locked to make a message.
	watchEvents = 256
	// catchUp is how long a watch waits for a replica that lags behind the one
	// that the token is from.
	catchUp = 5 * time.Second
)

// Watch sends changes from memory. A watcher holds no queue: it has a place in
// the history that all watchers share, and one that is slow finds several
// changes of an object joined into one. One that is slower than the history is
// long is ended.
func (s *Server) Watch(req *musterv1.WatchRequest, stream musterv1.ControlService_WatchServer) error {
	ctx, cancel := s.Streaming(stream.Context())
	defer cancel()
	if err := s.Ready(ctx); err != nil {
		return err
	}
	filter, err := newWatchFilter(req, s.events)
	if err != nil {
		return err
	}
	w := &watch{Server: s, stream: stream, filter: filter, old: req.IncludeOld}
	s.opt.Watchers.Inc()
	defer s.opt.Watchers.Dec()
	if err := w.begin(ctx, req.ResumeToken); err != nil {
		return err
	}
	return s.StreamEnd(ctx, w.follow(ctx))
}

type watch struct {
	*Server
	stream musterv1.ControlService_WatchServer
	filter *watchFilter
	old    bool

	cursor objects.Cursor
	// point is how far the watcher has come, and told is what it was told last.
	point, told objects.Point
}

// begin establishes the watch and sends what has changed since the token.
func (w *watch) begin(ctx context.Context, token string) error {
	if token == "" {
		w.cursor, w.point = w.View.Now()
		w.View.Read(func(r *objects.Reader) { w.filter.learn(r) })
		return w.send(nil, w.point)
	}
	from, err := w.parse(token)
	if err != nil {
		return err
	}
	changes, err := w.resume(ctx, from)
	if err != nil {
		return err
	}
	w.View.Read(func(r *objects.Reader) { w.filter.learn(r) })
	if err := w.send(nil, from); err != nil {
		return err
	}
	return w.deliver(ctx, changes, from)
}

// parse reads a token that this or another version of apid made.
func (w *watch) parse(token string) (objects.Point, error) {
	sequences, err := parseResumeToken(token)
	if err == nil {
		var from objects.Point
		if from, err = w.View.PointOf(sequences); err == nil {
			return from, nil
		}
	}
	if errors.Is(err, errUnknownForm) || errors.Is(err, objects.ErrForgotten) {
		return objects.Point{}, errTooOld()
	}
	return objects.Point{}, err
}

// errTooOld ends a watch whose token cannot be resumed from.
func errTooOld() error {
	return status.Error(codes.OutOfRange, "it is not known any more what changed since then: list again, and watch without a token")
}

// resume waits until this replica has come as far as the token says, for it
// may be another one's.
func (w *watch) resume(ctx context.Context, from objects.Point) ([]objects.Change, error) {
	ctx, cancel := context.WithTimeout(ctx, catchUp)
	defer cancel()
	for {
		r, err := w.View.Resume(from)
		if errors.Is(err, objects.ErrForgotten) {
			return nil, errTooOld()
		}
		if err != nil {
			return nil, w.Fail("resume watch", err)
		}
		if r.Caught {
			w.cursor, w.point = r.Cursor, r.Point
			return r.Changes, nil
		}
		select {
		case <-ctx.Done():
			return nil, status.Error(codes.OutOfRange, "this API server has not come as far as the token says: list again, and watch without a token")
		case <-r.More:
		}
	}
}

// follow sends what changes, until ctx ends.
func (w *watch) follow(ctx context.Context) error {
	bookmark := time.NewTicker(w.opt.Bookmark)
	defer bookmark.Stop()
	for {
		changes, cursor, point, more, err := w.View.Since(w.cursor)
		if errors.Is(err, objects.ErrForgotten) {
			return status.Error(codes.OutOfRange, "the watch was too slow to keep up: list again, and watch without a token")
		}
		if err != nil {
			return w.Fail("watch", err)
		}
		before := w.point
		w.cursor, w.point = cursor, point
		if err := w.deliver(ctx, changes, before); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-more:
		case <-bookmark.C:
			// A watch on what hardly ever changes must not be left with a token
			// from long ago.
			if !w.point.Equal(w.told) {
				if err := w.send(nil, w.point); err != nil {
					return err
				}
			}
		}
	}
}

// deliver sends changes in messages of bounded size. Only the last says that
// all of them have been seen: a watch that is cut off in between resumes from
// before, and sees the first ones again.
func (w *watch) deliver(ctx context.Context, changes []objects.Change, before objects.Point) error {
	changes = slices.DeleteFunc(changes, w.filter.ignores)
	for len(changes) > 0 {
		var events []*musterv1.WatchEvent
		var rest []objects.Change
		err := w.ReadWhole(ctx, w.View.ReadSeen, func(r *objects.Reader) {
			events, rest = nil, changes
			for n, size := 0, 0; len(rest) > 0 && size < watchBytes && n < watchEvents; n++ {
				if e := w.filter.event(r, rest[0], w.old); e != nil {
					events = append(events, e)
					size += proto.Size(e)
				}
				rest = rest[1:]
			}
		})
		if err != nil {
			return err
		}
		changes = rest
		if len(events) == 0 {
			continue
		}
		at := before
		if len(changes) == 0 {
			at = w.point
		}
		if err := w.send(events, at); err != nil {
			return err
		}
	}
	return nil
}

func (w *watch) send(events []*musterv1.WatchEvent, at objects.Point) error {
	w.told = at
	return w.stream.Send(&musterv1.WatchResponse{Events: events, ResumeToken: resumeToken(at)})
}

func timestamp(t time.Time) *timestamppb.Timestamp { return timestamppb.New(t) }
