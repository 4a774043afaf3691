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

// Options are what a run does beside its script.
type Options struct {
	// Journal, if given, takes all events.
	Journal io.Writer
	// Mutation breaks the product on purpose, to see that the simulation notices.
	Mutation Mutation
}

// cluster is a cluster in memory, and all that is needed to break and to judge it.
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
	// background ends with the run.
	background context.Context
	// wg waits for processes, ears for those who wait for ends of sessions.
	wg, ears sync.WaitGroup

	// What the judge remembers.
	follower *state.Follower
	// asks counts what users are asked to do after the script.
	asks int
}

// scratch is where workers' directories go: into memory, if there is a place, for
// they sync what they write, and nothing in here can tell whether that came to a disk.
func scratch() string {
	const memory = "/dev/shm"
	if at, err := os.Stat(memory); err == nil && at.IsDir() {
		return memory
	}
	return os.TempDir()
}

// newCluster makes a cluster and starts nothing.
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

// violated notes that something is wrong. The first such thing ends the run.
func (c *cluster) violated(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	c.journal.note("VIOLATED: %s", text)
	c.report.violated(text, c.journal.tail)
}

// deaf is how much later than others a process hears that its session has ended.
func (c *cluster) deaf(name string) time.Duration { return c.script.Deaf[name] }

func (c *cluster) loseSessions(space *kvfault.KV) {
	if err := space.LoseSessions(c.background); err != nil {
		c.violated("lose sessions: %v", err)
	}
}

// Run runs a script. It must be called in a bubble of testing/synctest, and leaves
// nothing behind.
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
		// It ends with ctx, and with nothing else.
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
	c.ears.Wait()
	return c.report, nil
}

// perform does all that the script says, and sees the cluster come to rest and be
// emptied.
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
	if !c.trouble() {
		return
	}
	c.journal.note("nothing goes wrong any more")
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
			faults = p.told()
		}
		return faults
	}) {
		return
	}
	c.journal.note("the cluster is at rest")
	c.until("be emptied", emptyTimeout, 1, func(p *picture) []string {
		c.clear(p)
		return append(p.empty(), c.busy()...)
	})
}

const (
	// tick is how often everything is looked at.
	tick = 500 * time.Millisecond
	// settleTimeout is how long a cluster may take to come to rest: an update of all
	// tasks one by one, each of which takes some seconds.
	settleTimeout = 10 * time.Minute
	// emptyTimeout is how long the last records may stay: specs do for a grace time,
	// and then go some at a time.
	emptyTimeout = 30 * time.Minute
)

// trouble goes through the script. It reports whether all was well.
func (c *cluster) trouble() bool {
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

// judge looks at everything, and reports whether all is well.
func (c *cluster) judge() bool {
	synctest.Wait()
	for _, fault := range c.look().always() {
		c.violated("%s", fault)
	}
	return len(c.report.Violations()) == 0
}

// until waits until nothing is wrong any more, a number of times in a row. It
// reports whether that came to be.
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

// end ends everything in order.
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
