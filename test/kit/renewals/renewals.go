// Package renewals puts a cluster with access control under load while the
// certificates of all its daemons, workers and clients are renewed again and again.
// It counts calls and renewals, and no call may fail.
package renewals

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/test/kit/cluster"
	"github.com/musterhq/muster/test/kit/rig"
	"github.com/musterhq/muster/test/kit/wait"
)

// Workers are the nodes that a load needs, by the names of their workers.
const (
	// Talks runs tasks whose output is read all the while.
	Talks = "talks"
	// Returns is a worker that may be killed and started again: its tasks run on.
	Returns = "returns"
)

const (
	// callTimeout bounds one call. One that takes longer has failed.
	callTimeout = time.Minute
	// startTimeout bounds the start of the load's services, and settleTimeout what must
	// be so after the load.
	startTimeout  = 2 * time.Minute
	settleTimeout = 2 * time.Minute
	// steadyTasks is how many tasks there are that must not notice anything.
	steadyTasks = 4
)

// MayRestart are those that may be killed and started again while there is load:
// of managers one replica is left alone, and those that hold streams are, too.
func MayRestart() []string {
	return []string{Returns, cluster.Replica("schedulerd", 2), cluster.Replica("orchestratord", 2)}
}

// Load is clients that call a cluster all the time.
type Load struct {
	r     *rig.Rig
	began time.Time
	// steady are the tasks that nothing may move.
	steady map[string]*musterv1.Task

	mu     sync.Mutex
	result Result
	// failed are the calls that failed, and what logs say, and stalls the times at
	// which the machine or Consul did.
	failed []failure
	stalls []stall
	// serials are those of the certificates that each daemon has shown.
	serials map[string]map[string]bool
}

// Result is what was counted.
type Result struct {
	// Calls are the calls that succeeded, by what was called and how; a message of a
	// stream is one.
	Calls map[string]int `json:"calls"`
	// Renewals are how often the certificate of each daemon and worker was renewed,
	// by its name.
	Renewals map[string]int `json:"renewals"`
	// Shown is how many certificates clients saw of each manager daemon.
	Shown map[string]int `json:"shown"`
	// Failures are calls that failed, and whatever else should not be.
	Failures []string `json:"failures"`
	// Stalls are how often the disk or Consul itself took long, or did not answer, and
	// Stalled what failed around that: it says nothing of certificates.
	Stalls  int      `json:"stalls"`
	Stalled []string `json:"stalled"`
}

// Start starts what the load needs: services whose tasks run on, and one that
// talks.
func Start(ctx context.Context, r *rig.Rig) (*Load, error) {
	l := &Load{r: r, began: time.Now(), serials: map[string]map[string]bool{}, result: Result{Calls: map[string]int{}}}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := wait.Until(ctx, r.Ready); err != nil {
		return nil, fmt.Errorf("nodes do not join: %w", err)
	}
	talks := rig.Processes("talks", 2, "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.2; done")
	talks.Task.Placement = &musterv1.Placement{Constraints: []string{"node.hostname==" + Talks}}
	for _, spec := range []*musterv1.ServiceSpec{talks, rig.Processes("steady", steadyTasks, rig.Sleep), rig.Processes("changes", 1, rig.Sleep)} {
		if _, err := r.Create(ctx, spec); err != nil {
			return nil, fmt.Errorf("create service %s: %w", spec.Name, err)
		}
	}
	err := wait.Until(ctx, func(ctx context.Context) (err error) {
		if _, err = r.Running(ctx, "talks", 2); err == nil {
			l.steady, err = r.Running(ctx, "steady", steadyTasks)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("services do not run: %w", err)
	}
	return l, nil
}

// Run calls until ctx ends, waits for the calls that are under way, and looks what
// has become of the tasks.
func (l *Load) Run(ctx context.Context) {
	probing, stop := context.WithCancel(context.WithoutCancel(ctx))
	var probes sync.WaitGroup
	for _, do := range []func(context.Context) error{l.askConsul, askDisk} {
		probes.Go(func() { l.probe(probing, do) })
	}
	// No call has a deadline, for a server may end a stream for it that is not over
	// here yet.
	loaded, end := context.WithCancel(context.WithoutCancel(ctx))
	var clients sync.WaitGroup
	for _, c := range l.calls() {
		clients.Go(func() { l.every(loaded, c) })
	}
	for _, name := range l.r.Replicas("apid") {
		clients.Go(func() { l.watch(loaded, name) })
		clients.Go(func() { l.read(loaded, name) })
	}
	clients.Go(func() { l.change(loaded) })
	<-ctx.Done()
	end()
	clients.Wait()

	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTimeout)
	defer cancel()
	l.recover(ctx)
	l.settled(ctx)
	stop()
	probes.Wait()
}

// settled sees that the tasks are those that there were.
func (l *Load) settled(ctx context.Context) {
	err := wait.Until(ctx, func(ctx context.Context) error {
		now, err := l.r.Running(ctx, "steady", steadyTasks)
		if err != nil {
			return err
		}
		return errors.Join(rig.Same(l.steady, now), l.r.Truthful(ctx))
	})
	if err != nil {
		l.wrong("tasks", err)
	}
}

// Result returns what was counted. Each certificate must have been renewed so
// often.
func (l *Load) Result(ctx context.Context, atLeast int) (Result, error) {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	renewals := map[string]int{}
	for name, p := range l.r.Processes() {
		var err error
		if renewals[name], err = l.judge(ctx, name, p, atLeast); err != nil {
			return Result{}, err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.result
	r.Renewals, r.Shown = renewals, map[string]int{}
	for _, f := range l.failed {
		if l.stalled(f) {
			r.Stalled = append(r.Stalled, f.String())
		} else {
			r.Failures = append(r.Failures, f.String())
		}
	}
	r.Stalls = len(l.stalls)
	for name, serials := range l.serials {
		r.Shown[name] = len(serials)
	}
	return r, nil
}

// succeed counts a call.
func (l *Load) succeed(what string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.result.Calls[what]++
}

// fail notes a failure that a slow machine may have brought about.
func (l *Load) fail(what string, err error) { l.failAt(time.Now(), what, err) }

func (l *Load) failAt(at time.Time, what string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failed = append(l.failed, failure{at, what, err})
}

// wrong notes what no slow machine brings about.
func (l *Load) wrong(what string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.result.Failures = append(l.result.Failures, failure{time.Now(), what, err}.String())
}

// shown notes the certificate that a daemon has shown.
func (l *Load) shown(name, serial string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.serials[name] == nil {
		l.serials[name] = map[string]bool{}
	}
	l.serials[name][serial] = true
}
