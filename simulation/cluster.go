package simulation

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"sync"
	"testing/synctest"
	"time"

	"github.com/musterhq/muster/internal/kv/embedded"
	"github.com/musterhq/muster/internal/kv/kvfault"
	"github.com/musterhq/muster/internal/state"
)

// Options configure a run.
type Options struct {
	// Journal is optional. It gets all events.
	Journal io.Writer
	// Mutation breaks the product on purpose, to check that the simulation notices.
	Mutation Mutation
}

// cluster is a cluster in memory, with everything that is needed to break and judge it.
type cluster struct {
	script   *Script
	mutation Mutation
	journal  *journal
	report   *Report
	dir      string
	net      *network
	kv       *embedded.KV
	observer *observer
	managers map[string]*manager
	nodes    map[string]*node
	users    []*user
	// background is the context of the run without its cancellation.
	background context.Context
	// wg waits for processes, sessionWaiters for goroutines that wait for the ends of sessions.
	wg, sessionWaiters sync.WaitGroup

	// follower is the judge's.
	follower *state.Follower
	// asks counts the calls that users are asked to make after the script.
	asks int
}

// scratch returns the parent of the workers' directories: in memory if possible, because
// workers sync their files, which nothing here can verify.
func scratch() string {
	const memory = "/dev/shm"
	if at, err := os.Stat(memory); err == nil && at.IsDir() {
		return memory
	}
	return os.TempDir()
}

// newCluster creates a cluster without starting it.
func newCluster(script *Script, opt Options) (*cluster, error) {
	dir, err := os.MkdirTemp(scratch(), "muster-simulation-")
	if err != nil {
		return nil, fmt.Errorf("make a directory for workers: %w", err)
	}
	space, err := embedded.Open(embedded.Config{})
	if err != nil {
		return nil, err
	}
	c := &cluster{
		script: script, mutation: opt.Mutation, journal: newJournal(opt.Journal), report: newReport(script), dir: dir,
		net: newNetwork(script.Size.Latency), kv: space, managers: map[string]*manager{}, nodes: map[string]*node{},
	}
	if c.observer, err = newObserver(c, space); err != nil {
		return nil, err
	}
	c.follower = state.NewFollower(c.observer.tables)
	for i := range script.Size.Managers {
		for _, d := range daemons {
			name := replica(d, i+1)
			c.managers[name] = &manager{name: name, c: c}
		}
	}
	for i := range script.Size.Workers + script.Size.Late {
		name := workerName(i)
		c.nodes[name] = newNode(c, name, i)
	}
	for i := range script.Size.Clients {
		u, err := newUser(c, i)
		if err != nil {
			return nil, err
		}
		c.users = append(c.users, u)
	}
	return c, nil
}

// violated records a violation. The first one ends the run.
func (c *cluster) violated(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	c.journal.note("VIOLATED: %s", text)
	c.report.violated(text, c.journal.tail)
}

// sessionLossDelay returns how late a process learns that its session has ended.
func (c *cluster) sessionLossDelay(name string) time.Duration {
	return c.script.SessionLossDelays[name]
}

func (c *cluster) loseSessions(space *kvfault.KV) {
	if err := space.LoseSessions(c.background); err != nil {
		c.violated("lose sessions: %v", err)
	}
}

// Run runs a script. It must be called in a bubble of testing/synctest, and cleans up.
func Run(script *Script, opt Options) (*Report, error) {
	c, err := newCluster(script, opt)
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(c.dir) }() // it is temporary
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	c.background = context.WithoutCancel(ctx)

	var watching sync.WaitGroup
	watching.Go(func() {
		// It only ends with ctx.
		_ = c.observer.store.Run(ctx)
	})
	watching.Go(func() { c.observer.run(ctx) })
	if opt.Mutation.Beside != nil {
		watching.Go(func() {
			if err := opt.Mutation.Beside(ctx, c.kv); err != nil {
				c.violated("mutation: %v", err)
			}
		})
	}
	if err := c.observer.store.Ready(ctx); err != nil {
		return nil, err
	}
	began := time.Now()
	c.perform()
	c.report.Took = time.Since(began)
	c.end()
	cancel()
	watching.Wait()
	if err := c.kv.Close(); err != nil {
		return nil, err
	}
	c.sessionWaiters.Wait()
	return c.report, nil
}

// perform runs the script, waits until the cluster has settled, removes everything, and
// waits until the cluster is empty.
func (c *cluster) perform() {
	for _, name := range slices.Sorted(maps.Keys(c.managers)) {
		c.managers[name].start()
	}
	for i := range c.script.Size.Workers {
		c.nodes[workerName(i)].start()
	}
	for _, u := range c.users {
		c.wg.Go(u.run)
	}
	if !c.runSteps() {
		return
	}
	c.journal.note("all faults have ended")
	for _, m := range c.managers {
		m.start()
	}
	for _, n := range c.nodes {
		n.start()
	}
	if !c.until("come to rest", settleTimeout, 5, func(p *picture) []string {
		c.heal(p)
		faults := append(p.settled(), c.busy()...)
		if len(faults) == 0 {
			faults = p.apiDifferences()
		}
		return faults
	}) {
		return
	}
	c.journal.note("the cluster has settled")
	c.until("be emptied", emptyTimeout, 1, func(p *picture) []string {
		c.clear(p)
		return append(p.empty(), c.busy()...)
	})
}

const (
	// tick is the time between two judgements.
	tick = 500 * time.Millisecond
	// settleTimeout is how long a cluster may take to settle. An update replaces all tasks
	// one by one, and each takes some seconds.
	settleTimeout = 10 * time.Minute
	// emptyTimeout is how long the last records may stay. Specs are kept for a grace
	// period, and then removed a few at a time.
	emptyTimeout = 30 * time.Minute
)

// runSteps runs the steps of the script. It reports whether there were no violations.
func (c *cluster) runSteps() bool {
	began := time.Now()
	var faults sync.WaitGroup
	defer faults.Wait()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	steps := c.script.Steps
	for at := tick; ; at += tick {
		for len(steps) > 0 && steps[0].At <= at {
			s := steps[0]
			steps = steps[1:]
			time.Sleep(time.Until(began.Add(s.At)))
			if s.API != "" {
				c.users[s.Client].steps <- s
				continue
			}
			faults.Go(func() { c.fault(ctx, s) })
		}
		time.Sleep(time.Until(began.Add(at)))
		if !c.judge() {
			return false
		}
		if at >= c.script.Size.Length {
			break
		}
	}
	faults.Wait()
	return true
}

// judge checks the invariants, and reports whether there are no violations.
func (c *cluster) judge() bool {
	synctest.Wait()
	for _, fault := range c.look().always() {
		c.violated("%s", fault)
	}
	return len(c.report.Violations()) == 0
}

// until waits until wrong returns nothing a number of times in a row. It reports false if
// that takes too long.
func (c *cluster) until(what string, within time.Duration, times int, wrong func(*picture) []string) bool {
	began := time.Now()
	for well := 0; ; {
		time.Sleep(2 * tick)
		if !c.judge() {
			return false
		}
		faults := wrong(c.look())
		if len(faults) == 0 {
			if well++; well == times {
				c.report.note("to "+what, time.Since(began))
				return true
			}
			continue
		}
		well = 0
		if time.Since(began) > within {
			for _, f := range faults {
				c.violated("after %v to %s: %s", within, what, f)
			}
			return false
		}
	}
}

// end stops everything gracefully.
func (c *cluster) end() {
	c.journal.note("the end")
	for _, u := range c.users {
		close(u.steps)
	}
	var ends sync.WaitGroup
	for _, n := range c.nodes {
		ends.Go(n.stop)
	}
	ends.Wait()
	for _, m := range c.managers {
		ends.Go(m.stop)
	}
	ends.Wait()
	c.wg.Wait()
}
