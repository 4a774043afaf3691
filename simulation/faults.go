package simulation

import (
	"context"
	"fmt"
	"strings"

	"github.com/musterhq/muster/internal/backoff"
	"github.com/musterhq/muster/internal/kv"
	"github.com/musterhq/muster/internal/kv/kvfault"
	"github.com/musterhq/muster/internal/state"
)

var errInjected = fmt.Errorf("injected: %w", kv.ErrUnavailable)

// fault makes something go wrong, and undoes it when its time is over or ctx ends.
func (c *cluster) fault(ctx context.Context, s Step) {
	c.journal.note("fault: %v", s)
	c.report.count("fault: "+string(s.Op), 1)
	switch {
	case s.Op == noStore:
		c.allAway(ctx, s)
	case s.With != "":
		c.linkFault(ctx, s)
	case c.nodes[s.Who] != nil:
		c.nodeFault(ctx, c.nodes[s.Who], s)
	case c.managers[s.Who] != nil:
		c.managerFault(ctx, c.managers[s.Who], s)
	}
	if s.For > 0 {
		c.journal.note("over: %s %s %s", s.Op, s.Who, s.With)
	}
}

func (c *cluster) nodeFault(ctx context.Context, n *node, s Step) {
	switch s.Op {
	case join:
		n.start()
	case leave:
		n.leave(s.Silent)
	case doubled, late:
		twice := 0
		if s.Op == doubled {
			twice = 1
		}
		n.reports.change(twice, s.By)
		_ = backoff.Sleep(ctx, s.For)
		n.reports.change(-twice, -s.By)
	case doubledOrders:
		n.orders.change(1)
		_ = backoff.Sleep(ctx, s.For)
		n.orders.change(-1)
	default:
		switch s.Op {
		case stop:
			n.stop()
		default:
			n.kill(s.Op == powerOff, s.Silent)
		}
		_ = backoff.Sleep(ctx, s.For)
		n.start()
	}
}

func (c *cluster) linkFault(ctx context.Context, s Step) {
	switch s.Op {
	case reset:
		c.net.reset(s.Who, s.With)
	case cut:
		mend := c.net.cut(s.Who, s.With)
		defer mend()
		_ = backoff.Sleep(ctx, s.For)
	case slow:
		mend := c.net.slow(s.Who, s.With, s.By)
		defer mend()
		_ = backoff.Sleep(ctx, s.For)
	}
}

func (c *cluster) managerFault(ctx context.Context, m *manager, s Step) {
	writes := func(c kvfault.Call) bool { return c.Writes }
	switch s.Op {
	case kill:
		m.kill(s.Silent)
		_ = backoff.Sleep(ctx, s.For)
		m.start()
	case stop:
		m.stop()
		_ = backoff.Sleep(ctx, s.For)
		m.start()
	case cutStore:
		c.storeFault(ctx, m, s, true, kvfault.Fault{Err: errInjected})
	case hungStore:
		c.storeFault(ctx, m, s, true, kvfault.Fault{Hang: true})
	case slowStore:
		c.storeFault(ctx, m, s, false, kvfault.Fault{Delay: s.By})
	case lateLists:
		c.storeFault(ctx, m, s, false, kvfault.Fault{Op: kvfault.List, Delay: s.By})
	case failBefore:
		m.inject(kvfault.Fault{Op: kvfault.Txn, When: writes, Err: errInjected, Times: s.N})
	case failAfter:
		m.inject(kvfault.Fault{Op: kvfault.Txn, When: writes, Err: errInjected, Times: s.N, Applied: true})
	case lose:
		if l := m.running(); l != nil {
			c.loseSessions(l.kv)
		}
	}
}

// storeFault breaks a manager's way to the store for a while. If nothing comes
// through, its session runs out.
func (c *cluster) storeFault(ctx context.Context, m *manager, s Step, silent bool, f kvfault.Fault) {
	l := m.running()
	if l == nil {
		return
	}
	mend := m.inject(f)
	defer mend()
	if silent && s.For > silence {
		_ = backoff.Sleep(ctx, silence)
		c.loseSessions(l.kv)
		s.For -= silence
	}
	_ = backoff.Sleep(ctx, s.For)
}

// allAway takes the store away from all.
func (c *cluster) allAway(ctx context.Context, s Step) {
	for _, m := range c.managers {
		mend := m.inject(kvfault.Fault{Err: errInjected})
		defer mend()
	}
	_ = backoff.Sleep(ctx, s.For)
}

// busy says which users still have something to do.
func (c *cluster) busy() (faults []string) {
	for _, u := range c.users {
		if u.busy() {
			faults = append(faults, fmt.Sprintf("user-%d has not done everything yet", u.number))
		}
	}
	return faults
}

// owner returns the user who made a service.
func (c *cluster) owner(name string) *user {
	for _, u := range c.users {
		if strings.HasPrefix(name, fmt.Sprintf("s%d-", u.number)) {
			return u
		}
	}
	return nil
}

// heal has users change services that never settle as they are, and repeat updates that
// have paused or were rolled back.
func (c *cluster) heal(p *picture) {
	for id, s := range p.services {
		u := c.owner(s.Spec.Name)
		if u == nil || u.busy() {
			continue
		}
		spec := clone(s.Spec)
		spec.Task = clone(p.task(s.TaskDigest))
		rollout, _ := p.observer.tables.Rollouts.Get(p.now, id)
		stuck := state.IsCurrent(s, rollout.Value) && state.Halted(rollout.Value)
		restless := p.restless(id, s, rollout.Value)
		if steady(spec) && !stuck && !restless {
			continue
		}
		c.asks++
		if restless || !steady(spec) {
			spec.Labels = map[string]string{revisionLabel: fmt.Sprint("healed-", c.asks)}
		}
		if restless {
			spec.Update.Parallelism = 0
		}
		switch {
		case !steady(spec):
			heal(spec)
		case restless && stuck:
			// Without it the tasks would keep running the former spec.
			spec.Task.ForceUpdate++
		}
		u.steps <- Step{Op: update, Who: spec.Name, Client: u.number, API: replica("apid", 1+c.asks%c.script.Size.Managers), Spec: spec}
	}
}

// clear has users remove all services, configs and networks.
func (c *cluster) clear(p *picture) {
	for _, u := range c.users {
		if u.busy() {
			continue
		}
		for name := range p.networks {
			// Others are in use.
			if len(p.services) == 0 && (strings.HasPrefix(name, ownedNetwork(u.number)) || name == ingressNetwork && u.number == 0) {
				c.asks++
				u.steps <- Step{Op: removeNetwork, Who: name, Client: u.number, API: replica("apid", 1+c.asks%c.script.Size.Managers)}
			}
		}
		for name := range p.configs {
			if strings.HasPrefix(name, fmt.Sprintf("c%d-", u.number)) {
				c.asks++
				u.steps <- Step{Op: removeConfig, Who: name, Client: u.number, API: replica("apid", 1+c.asks%c.script.Size.Managers)}
			}
		}
	}
	for _, s := range p.services {
		if u := c.owner(s.Spec.Name); u != nil && !u.busy() {
			c.asks++
			u.steps <- Step{Op: remove, Who: s.Spec.Name, Client: u.number, API: replica("apid", 1+c.asks%c.script.Size.Managers)}
		}
	}
}
