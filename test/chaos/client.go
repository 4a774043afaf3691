package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/backoff"
	"github.com/musterhq/muster/test/kit/rig"
)

const (
	// mostServices is how many services a client has at once.
	mostServices = 5
	// mostReplicas is how many tasks a service has at most.
	mostReplicas = 4
	// callTimeout bounds one operation. One that has no answer by then may or may
	// not have been applied.
	callTimeout = 15 * time.Second
)

// client is a user: it makes services, changes and removes them, and remembers
// what was accepted. No other client touches its services.
type client struct {
	s        *site
	report   *report
	rand     *rand.Rand
	number   int
	made     int
	services map[string]*service
	// unsure are services that were not there when they should be removed, and may
	// come yet.
	unsure map[string]bool
}

// service is what a client knows of a service: what each of its parts may be.
// There are several possibilities after operations that had no answer.
type service struct {
	name     string
	process  bool
	there    []bool
	replicas []uint64
	revision []string
}

// revisionLabel is the label that tells which update a service has seen.
const revisionLabel = "revision"

func newClient(s *site, report *report, number int, r *rand.Rand) *client {
	return &client{s: s, report: report, number: number, rand: r, services: map[string]*service{}, unsure: map[string]bool{}}
}

// run works until ctx ends.
func (c *client) run(ctx context.Context) {
	for ctx.Err() == nil {
		c.step(ctx)
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(c.rand.IntN(400)) * time.Millisecond):
		}
	}
}

// step does one operation.
func (c *client) step(ctx context.Context) {
	names := slices.Sorted(maps.Keys(c.services))
	if len(names) == 0 || len(names) < mostServices && c.rand.IntN(4) == 0 {
		c.create(ctx)
		return
	}
	v := c.services[names[c.rand.IntN(len(names))]]
	switch n := c.rand.IntN(10); {
	case n < 5:
		c.scale(ctx, v)
	case n < 9:
		c.update(ctx, v)
	default:
		c.remove(ctx, v)
	}
}

// do makes an operation, also past the end of ctx: it is given the time to have an
// answer. It reports whether it was accepted, and whether it may have been applied.
func (c *client) do(ctx context.Context, kind string, call func(context.Context) error) (accepted, applied bool) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	began := time.Now()
	err := call(ctx)
	took := time.Since(began)
	switch code := status.Code(err); {
	case err == nil:
		c.report.operation(kind, "accepted", took)
		return true, true
	case errors.Is(err, context.DeadlineExceeded), code == codes.DeadlineExceeded, code == codes.Unavailable, code == codes.Canceled:
		c.report.operation(kind, "no answer", took)
		return false, true
	case errors.Is(err, errAbsent):
		c.report.operation(kind, "not there", took)
		return false, true
	default:
		c.report.operation(kind, "refused", took)
		c.report.violated("%s was refused: %v", kind, err)
		return false, false
	}
}

func (c *client) create(ctx context.Context) {
	c.made++
	v := &service{name: fmt.Sprintf("client-%d-%d", c.number, c.made), process: c.rand.IntN(2) == 0, there: []bool{false}}
	n := uint64(1 + c.rand.IntN(mostReplicas))
	spec := rig.Null(v.name, n)
	if v.process {
		spec = rig.Processes(v.name, n, rig.Sleep)
	}
	accepted, applied := c.do(ctx, "create", func(ctx context.Context) error {
		_, err := c.s.Create(ctx, spec)
		return err
	})
	if !applied {
		return
	}
	settle(&v.there, accepted, true)
	settle(&v.replicas, true, n)
	settle(&v.revision, true, "")
	c.services[v.name] = v
}

func (c *client) scale(ctx context.Context, v *service) {
	n := uint64(c.rand.IntN(mostReplicas + 1))
	accepted, applied := c.do(ctx, "scale", func(ctx context.Context) error { return c.absent(v, c.s.Scale(ctx, v.name, n)) })
	if applied {
		settle(&v.replicas, accepted, n)
	}
}

func (c *client) update(ctx context.Context, v *service) {
	c.made++
	revision := strconv.Itoa(c.made)
	// Some updates replace all tasks, and some none.
	replace := c.rand.IntN(2) == 0
	accepted, applied := c.do(ctx, "update", func(ctx context.Context) error {
		for {
			err := c.absent(v, c.s.Update(ctx, v.name, func(spec *musterv1.ServiceSpec) {
				spec.Labels = map[string]string{revisionLabel: revision}
				if replace {
					spec.Task.ForceUpdate++
				}
			}))
			// An update begins with a read, and a replica that lags may not know of
			// the service yet: reads promise nothing else.
			if status.Code(err) != codes.NotFound || ctx.Err() != nil {
				return err
			}
			_ = backoff.Sleep(ctx, 100*time.Millisecond)
		}
	})
	if applied {
		settle(&v.revision, accepted, revision)
	}
}

func (c *client) remove(ctx context.Context, v *service) {
	accepted, applied := c.do(ctx, "remove", func(ctx context.Context) error {
		err := c.s.Remove(ctx, v.name)
		if status.Code(err) == codes.NotFound {
			// An attempt before, whose answer was lost; or it is yet to be created, by a
			// call that had no answer and is still on its way.
			c.unsure[v.name] = slices.Contains(v.there, false)
			return nil
		}
		return err
	})
	if applied {
		settle(&v.there, accepted, false)
	}
	if accepted {
		delete(c.services, v.name)
	}
}

// errAbsent says that a service is not there, and that this may be so: it is not
// known whether it was created, or will be.
var errAbsent = errors.New("service is not there")

func (c *client) absent(v *service, err error) error {
	if status.Code(err) == codes.NotFound && slices.Contains(v.there, false) {
		return errAbsent
	}
	return err
}

// settle notes what a part of a service is after an operation, or may be.
func settle[T comparable](possible *[]T, accepted bool, value T) {
	if accepted {
		*possible = []T{value}
	} else if !slices.Contains(*possible, value) {
		*possible = append(*possible, value)
	}
}

// converged returns an error unless the client's services are what was accepted,
// and run.
func (c *client) converged(ctx context.Context) error {
	all, err := c.s.Services(ctx)
	if err != nil {
		return err
	}
	found := map[string]*musterv1.Service{}
	prefix := fmt.Sprintf("client-%d-", c.number)
	for _, s := range all {
		if len(s.Spec.Name) > len(prefix) && s.Spec.Name[:len(prefix)] == prefix {
			found[s.Spec.Name] = s
		}
	}
	for name, s := range found {
		v := c.services[name]
		if v == nil && c.unsure[name] {
			continue
		}
		if v == nil {
			return fmt.Errorf("service %s was removed, and is there", name)
		}
		if !slices.Contains(v.there, true) {
			return fmt.Errorf("service %s is there, and should not be", name)
		}
		if n := s.Spec.GetReplicated().GetReplicas(); !slices.Contains(v.replicas, n) {
			return fmt.Errorf("service %s has %d replicas, want one of %v", name, n, v.replicas)
		}
		if revision := s.Spec.Labels[revisionLabel]; !slices.Contains(v.revision, revision) {
			return fmt.Errorf("service %s is at revision %q, want one of %q", name, revision, v.revision)
		}
		if _, err := c.s.Running(ctx, name, int(s.Spec.GetReplicated().GetReplicas())); err != nil {
			return fmt.Errorf("service %s: %w", name, err)
		}
	}
	for name, v := range c.services {
		if found[name] == nil && !slices.Contains(v.there, false) {
			return fmt.Errorf("service %s is not there", name)
		}
	}
	return nil
}
