package main

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/musterhq/muster/internal/backoff"
)

// atOnce is how many faults there are at the same time at most.
const atOnce = 2

// maker makes faults at random. Its faults know how to undo themselves.
type maker struct {
	s      *site
	report *report
	only   string
	// away is how long Consul is gone as a whole, once.
	away time.Duration

	mu   sync.Mutex
	rand *rand.Rand
	// busy are the parts that a fault has befallen just now.
	busy map[string]bool
}

func newMaker(s *site, report *report, o options) *maker {
	return &maker{s: s, report: report, only: o.only, away: o.consulAway(), rand: rand.New(rand.NewPCG(o.seed, 1<<32)), busy: map[string]bool{}}
}

// run makes faults until ctx ends, and undoes them all.
func (m *maker) run(ctx context.Context) {
	var wg sync.WaitGroup
	if m.away > 0 {
		wg.Go(func() { m.make(ctx, kind{name: "Consul gone", do: (*maker).consulGone}) })
	}
	slots := make(chan struct{}, atOnce)
	for ctx.Err() == nil {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			continue
		}
		kind := m.choose()
		wg.Go(func() {
			defer func() { <-slots }()
			m.make(ctx, kind)
		})
		_ = backoff.Sleep(ctx, m.between(200*time.Millisecond, 3*time.Second))
	}
	wg.Wait()
}

// choose chooses a kind of fault, by weight.
func (m *maker) choose() kind {
	total := 0
	var possible []kind
	for _, k := range kinds {
		if strings.HasPrefix(k.name, m.only) {
			possible = append(possible, k)
			total += k.weight
		}
	}
	if total == 0 {
		return kind{name: "none", do: func(*maker, context.Context) (string, error) { return "", nil }}
	}
	n := m.intN(total)
	for _, k := range possible {
		if n -= k.weight; n < 0 {
			return k
		}
	}
	return possible[0]
}

// make makes one fault and undoes it.
func (m *maker) make(ctx context.Context, k kind) {
	began := time.Now()
	what, err := k.do(m, ctx)
	if err != nil {
		m.report.violated("fault %q (%s) went wrong: %v", k.name, what, err)
		return
	}
	if what == "" {
		return // there was nothing that it could befall
	}
	took := time.Since(began)
	m.report.fault(k.name, took)
	fmt.Printf("%s %-26s %-24s %v\n", began.Format("15:04:05.000"), k.name, what, took.Round(time.Millisecond))
}

// take reserves one of some parts, by name, until it is given back; "" if all are
// taken.
func (m *maker) take(names ...string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	free := slices.DeleteFunc(slices.Clone(names), func(n string) bool { return m.busy[n] })
	if len(free) == 0 {
		return ""
	}
	name := free[m.rand.IntN(len(free))]
	m.busy[name] = true
	return name
}

// takeAll reserves all of some parts, and none if one is taken.
func (m *maker) takeAll(names ...string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, n := range names {
		if m.busy[n] {
			return false
		}
	}
	for _, n := range names {
		m.busy[n] = true
	}
	return true
}

func (m *maker) giveBack(names ...string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, n := range names {
		delete(m.busy, n)
	}
}

func (m *maker) intN(n int) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rand.IntN(n)
}

// between returns a time between two.
func (m *maker) between(least, most time.Duration) time.Duration {
	return least + time.Duration(m.intN(int(most-least)))
}

// victims are the workers that faults may befall.
func (m *maker) victims() []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(m.s.workers)), func(n string) bool { return n == quiet })
}
