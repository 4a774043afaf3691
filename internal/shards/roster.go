package shards

import (
	"context"
	"strings"
	"sync"

	"go.uber.org/zap"

	"github.com/musterhq/muster/internal/kv"
)

// Roster watches the members and locks of one or more subsystems. Managers and
// directories that share a roster cost the store two blocking queries in all, instead
// of two each.
type Roster struct {
	prefix         string
	log            *zap.Logger
	members, locks *feed
}

// NewRoster returns an empty roster of these subsystems, or of all if none is named.
// Run fills it.
func NewRoster(store kv.KV, prefix string, log *zap.Logger, subsystems ...string) *Roster {
	members, locks := prefix+"/members/", prefix+"/locks/"
	if len(subsystems) == 1 {
		members, locks = membersPrefix(prefix, subsystems[0]), locksPrefix(prefix, subsystems[0])
	}
	return &Roster{
		prefix: prefix, log: log,
		members: &feed{kv: store, prefix: members, readers: map[*reader]struct{}{}},
		locks:   &feed{kv: store, prefix: locks, readers: map[*reader]struct{}{}},
	}
}

// Run watches members and locks until ctx ends.
func (r *Roster) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for _, f := range []*feed{r.members, r.locks} {
		wg.Go(func() { watchPrefix(ctx, f.kv, f.prefix, r.log, f.publish) })
	}
	wg.Wait()
	return nil
}

// Directory returns a directory of one of the roster's subsystems. It is up to date
// while both the roster and the directory run.
func (r *Roster) Directory(subsystem string) *Directory {
	return &Directory{
		roster: r, prefix: r.prefix, subsystem: subsystem, log: r.log,
		loaded: make(chan struct{}), changed: make(chan struct{}),
	}
}

// feed distributes the pairs under one prefix to its readers.
type feed struct {
	kv     kv.KV
	prefix string

	mu      sync.Mutex
	loaded  bool
	pairs   []kv.Pair
	readers map[*reader]struct{}
}

// reader gets all pairs under its prefix after each change. Calls do not overlap.
type reader struct {
	prefix string
	notify func([]kv.Pair)
}

func (r *reader) read(all []kv.Pair) {
	var mine []kv.Pair
	for _, p := range all {
		if strings.HasPrefix(p.Key, r.prefix) {
			mine = append(mine, p)
		}
	}
	r.notify(mine)
}

func (f *feed) publish(pairs []kv.Pair) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pairs, f.loaded = pairs, true
	for r := range f.readers {
		r.read(pairs)
	}
}

// subscribe calls see with all pairs under a prefix: at once if they are known, and
// after each change until end is called.
func (f *feed) subscribe(prefix string, see func([]kv.Pair)) (end func()) {
	r := &reader{prefix: prefix, notify: see}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.readers[r] = struct{}{}
	if f.loaded {
		r.read(f.pairs)
	}
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.readers, r)
	}
}
