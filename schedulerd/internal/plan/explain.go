package plan

import (
	"iter"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	"github.com/musterhq/muster/internal/placement"
	"github.com/musterhq/muster/internal/state"
)

// Explanation says why tasks of a service wait: for each of their specs, by the digest.
type Explanation struct {
	Service string
	Waiting map[string]Waiting
}

// Waiting says how many tasks of one spec wait, and why.
type Waiting struct {
	Tasks    int
	Reason   string
	Refusals []placement.Refusal
}

// add adds tasks that wait. Groups that differ only in what they publish share an
// explanation.
func (e *Explanation) add(digest string, w Waiting) {
	if before, ok := e.Waiting[digest]; ok {
		before.Tasks += w.Tasks
		w = before
	}
	e.Waiting[digest] = w
}

// records returns the records of table placements that say it, by key.
func (e *Explanation) records() map[string]*recordv1.Placement {
	records := make(map[string]*recordv1.Placement, len(e.Waiting))
	for digest, w := range e.Waiting {
		p := &recordv1.Placement{Pending: uint64(w.Tasks), Reason: w.Reason}
		for _, f := range w.Refusals {
			p.Filters = append(p.Filters, &recordv1.FilterCount{Filter: string(f.Filter), Reason: f.Reason, Nodes: uint64(f.Nodes)})
		}
		records[state.PlacementKey(e.Service, []byte(digest))] = p
	}
	return records
}

// Explanations decide which explanations must be written, and when: those that differ
// from what is stored, each service's at most once in a while.
type Explanations struct {
	every time.Duration
	// pending holds the records to be written, by service and key. A service with none
	// has nothing that waits.
	pending map[string]map[string]*recordv1.Placement
	// written is when a service's records were last written.
	written map[string]time.Time
}

// NewExplanations returns explanations that are written at most once in every.
func NewExplanations(every time.Duration) *Explanations {
	return &Explanations{every: every, pending: map[string]map[string]*recordv1.Placement{}, written: map[string]time.Time{}}
}

// Set takes the explanation of a service in the place of a former one.
func (e *Explanations) Set(x Explanation) { e.pending[x.Service] = x.records() }

// Keep forgets the services that are not this scheduler's.
func (e *Explanations) Keep(mine func(service string) bool) {
	maps.DeleteFunc(e.pending, func(service string, _ map[string]*recordv1.Placement) bool { return !mine(service) })
	maps.DeleteFunc(e.written, func(service string, _ time.Time) bool { return !mine(service) })
}

// Stored yields the records of table placements of a service.
type Stored func(service string) iter.Seq2[string, *recordv1.Placement]

// Due returns the services whose explanations must be written now, in order, and after
// what time others must; 0 if there are none. It forgets what is stored already.
func (e *Explanations) Due(now time.Time, stored Stored) (due []string, next time.Duration) {
	for _, service := range slices.Sorted(maps.Keys(e.pending)) {
		if same(stored(service), e.pending[service]) {
			delete(e.pending, service)
			continue
		}
		if rest := e.every - now.Sub(e.written[service]); rest > 0 {
			if next == 0 || rest < next {
				next = rest
			}
			continue
		}
		due = append(due, service)
	}
	return due, next
}

// same reports whether what is stored of a service says what the records say.
func same(stored iter.Seq2[string, *recordv1.Placement], records map[string]*recordv1.Placement) bool {
	known := 0
	for key, p := range stored {
		want, ok := records[key]
		if !ok || want.Pending != p.Pending || want.Reason != p.Reason {
			return false
		}
		known++
	}
	return known == len(records)
}

// Changes returns what must be written of a service in the place of what is stored:
// records by key, and nil for those that must go. A record keeps the time since which
// tasks wait.
func (e *Explanations) Changes(service string, now time.Time, stored Stored) map[string]*recordv1.Placement {
	changes := make(map[string]*recordv1.Placement, len(e.pending[service]))
	for key, p := range e.pending[service] {
		p = proto.CloneOf(p)
		p.Since = now.UnixMilli()
		changes[key] = p
	}
	for key, old := range stored(service) {
		if p := changes[key]; p == nil {
			changes[key] = nil
		} else if old.Since != 0 {
			p.Since = old.Since
		}
	}
	return changes
}

// Written notes that a service's explanation was written.
func (e *Explanations) Written(service string, now time.Time) {
	if len(e.pending[service]) == 0 {
		delete(e.written, service)
	} else {
		e.written[service] = now
	}
	delete(e.pending, service)
}

// Drop forgets the explanation of a service that is another scheduler's now.
func (e *Explanations) Drop(service string) { delete(e.pending, service) }
