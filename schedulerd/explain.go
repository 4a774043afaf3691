package schedulerd

import (
	"context"
	"errors"
	"maps"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	"github.com/musterhq/muster/internal/placement"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// explanations keep table placements: why tasks of a service wait, one record
// for each of its specs.
type explanations struct {
	tables *state.Tables
	every  time.Duration
	// pending holds, by service, what is to be written: records by key. A
	// service with none has nothing that waits.
	pending map[string]map[string]*recordv1.Placement
	// written is when a service's records were last written.
	written map[string]time.Time
}

func newExplanations(tables *state.Tables, every time.Duration) *explanations {
	return &explanations{
		tables: tables, every: every,
		pending: map[string]map[string]*recordv1.Placement{}, written: map[string]time.Time{},
	}
}

// addServices adds the services of which the table says something: it may be
// what another scheduler left behind.
func (e *explanations) addServices(r store.Reader, services map[string]struct{}) {
	for p := range e.tables.Placements.Scan(r, "") {
		// Fences of versions before v0.1.0 lie in the table too, under keys of one
		// segment.
		if service, _, ok := strings.Cut(p.Key, "/"); ok {
			services[service] = struct{}{}
		}
	}
}

// keep forgets what is to be said of services that are another scheduler's now.
func (e *explanations) keep(held map[int]bool) {
	gone := func(service string) bool { return !held[store.ShardOf(service)] }
	maps.DeleteFunc(e.pending, func(service string, _ map[string]*recordv1.Placement) bool { return gone(service) })
	maps.DeleteFunc(e.written, func(service string, _ time.Time) bool { return gone(service) })
}

// begin forgets what was said of a service: it is being looked at anew.
func (e *explanations) begin(service string) {
	e.pending[service] = map[string]*recordv1.Placement{}
}

// say notes why tasks of one spec wait.
func (e *explanations) say(service, digest string, tasks int, reason string, filters []*recordv1.FilterCount) {
	e.pending[service][state.PlacementKey(service, []byte(digest))] = &recordv1.Placement{
		Pending: uint64(tasks), Reason: reason, Filters: filters,
	}
}

// write brings the table to what was said, each service at most once in every,
// and returns when there is more to write, 0 if there is not. The transaction of
// each asks mine whether the service is still this scheduler's.
func (e *explanations) write(
	ctx context.Context, s *store.Store, mine func(*store.Tx, string) error, now time.Time,
) (time.Duration, error) {
	var (
		next  time.Duration
		first error
	)
	snapshot := s.Snapshot()
	for service, records := range e.pending {
		if !e.differs(snapshot, service, records) {
			delete(e.pending, service)
			continue
		}
		if rest := e.every - now.Sub(e.written[service]); rest > 0 {
			if next == 0 || rest < next {
				next = rest
			}
			continue
		}
		err := s.Update(ctx, func(tx *store.Tx) error {
			if err := mine(tx, service); err != nil {
				return err
			}
			e.put(tx, service, records, now)
			return nil
		})
		if errors.Is(err, errFenced) {
			delete(e.pending, service)
			continue
		}
		if err != nil {
			first, next = err, retryAfter
			continue
		}
		delete(e.pending, service)
		if len(records) == 0 {
			delete(e.written, service)
		} else {
			e.written[service] = now
		}
	}
	return next, first
}

// differs reports whether the table says something else of a service.
func (e *explanations) differs(r store.Reader, service string, records map[string]*recordv1.Placement) bool {
	same := 0
	for p := range e.tables.Placements.Scan(r, service+"/") {
		want, ok := records[p.Key]
		if !ok || want.Pending != p.Value.Pending || want.Reason != p.Value.Reason {
			return true
		}
		same++
	}
	return same != len(records)
}

func (e *explanations) put(tx *store.Tx, service string, records map[string]*recordv1.Placement, now time.Time) {
	since := map[string]int64{}
	var gone []string
	for p := range e.tables.Placements.Scan(tx, service+"/") {
		if _, ok := records[p.Key]; ok {
			since[p.Key] = p.Value.Since
		} else if strings.HasPrefix(p.Key, service+"/") {
			gone = append(gone, p.Key)
		}
	}
	for _, key := range gone {
		e.tables.Placements.Delete(tx, key)
	}
	for key, p := range records {
		p = proto.CloneOf(p) // it may be written again, with another time
		if p.Since = since[key]; p.Since == 0 {
			p.Since = now.UnixMilli()
		}
		e.tables.Placements.Put(tx, key, p)
	}
}

// counts writes refusals as a record holds them.
func counts(refusals *placement.Refusals) []*recordv1.FilterCount {
	var out []*recordv1.FilterCount
	for _, f := range refusals.Filters() {
		out = append(out, &recordv1.FilterCount{Filter: string(f.Filter), Reason: f.Reason, Nodes: uint64(f.Nodes)})
	}
	return out
}
