package stack

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/backoff"
)

// Result is what a deployment did.
type Result struct {
	// Stack is the stack as it is stored.
	Stack *musterv1.Stack
	// Services are all services of the spec. They may not have converged yet.
	Services []*musterv1.Service
	// Changes are those that were made, without objects that stay.
	Changes []Change
}

// Deploy stores a spec as the stack's next revision, and makes the cluster what it says:
// networks, configs, secrets, services, and then what is removed. It does not wait for
// tasks: the caller waits for Result.Services to converge, and may then call Clean. If an
// object changes meanwhile, it begins again with what there is then. After an error, the same
// call continues where this one ended.
//
// A stack that is being removed is removed first. Another deployment or removal of the
// stack that begins later ends this one with ErrConflict.
func Deploy(ctx context.Context, client Client, spec *musterv1.StackSpec, opt Options) (*Result, error) {
	const attempts = 5
	pause := backoff.New(100*time.Millisecond, time.Second)
	d := &deployment{client: client, name: spec.Name, progress: opt.Progress, result: &Result{}}
	for attempt := 1; ; attempt++ {
		err := d.deploy(ctx, spec, opt)
		switch status.Code(err) {
		case codes.Aborted, codes.AlreadyExists, codes.NotFound:
			if attempt < attempts && pause.Wait(ctx) == nil {
				continue
			}
		}
		return d.result, err
	}
}

// deployment is one call of Deploy.
type deployment struct {
	client   Client
	name     string
	progress func(Change)
	result   *Result
	// checked is when it was last seen that no other client has changed the stack.
	checked time.Time
}

func (d *deployment) deploy(ctx context.Context, spec *musterv1.StackSpec, opt Options) error {
	former, err := find(ctx, d.client, spec.Name)
	if err != nil {
		return err
	}
	if former.GetRemovingSince() != nil {
		if d.result.Stack != nil {
			return d.conflict(former)
		}
		if err := Remove(ctx, d.client, spec.Name, opt.Progress); err != nil && !errors.Is(err, ErrNotFound) {
			return fmt.Errorf("finish the removal of the stack: %w", err)
		}
	}
	p, err := prepare(ctx, d.client, spec, opt)
	if err != nil {
		return err
	}
	if d.result.Stack != nil && d.result.Stack.Revision.GetNumber() != p.stack.GetRevision().GetNumber() {
		return d.conflict(p.stack)
	}
	if d.result.Stack, err = store(ctx, d.client, p, opt.Message); err != nil {
		return err
	}
	return d.apply(ctx, p.changes)
}

// store stores the spec of a deployment as a revision, unless it is the current one.
func store(ctx context.Context, client Client, p *planned, message string) (*musterv1.Stack, error) {
	spec := proto.CloneOf(p.spec)
	for _, s := range spec.Secrets {
		s.Data = nil
	}
	var stored *musterv1.Stack
	var err error
	if p.stack == nil {
		var resp *musterv1.CreateStackResponse
		resp, err = client.CreateStack(ctx, &musterv1.CreateStackRequest{Spec: spec, Message: message})
		stored = resp.GetStack()
	} else {
		var resp *musterv1.UpdateStackResponse
		resp, err = client.UpdateStack(ctx, &musterv1.UpdateStackRequest{Stack: p.stack.Id, Version: p.stack.Meta.GetVersion(), Spec: spec, Message: message})
		stored = resp.GetStack()
	}
	switch status.Code(err) {
	case codes.OK:
		return stored, nil
	case codes.Aborted, codes.AlreadyExists:
	default:
		return nil, fmt.Errorf("store stack %q: %w", spec.Name, err)
	}
	// Two deployments of the same content do each other no harm.
	now, findErr := find(ctx, client, spec.Name)
	if findErr != nil {
		return nil, findErr
	}
	if now == nil {
		return nil, fmt.Errorf("%w: %q was removed; deploy again", ErrConflict, spec.Name)
	}
	current, readErr := client.GetStackRevision(ctx, &musterv1.GetStackRevisionRequest{Stack: now.Id})
	if readErr != nil {
		return nil, fmt.Errorf("read revision of stack %q: %w", spec.Name, readErr)
	}
	if sameContent(current.Spec, spec) {
		// The digests of secrets are made with the key of the one that was first.
		return nil, fmt.Errorf("store stack %q: %w", spec.Name, err)
	}
	return nil, conflictWith(spec.Name, now)
}

// sameContent reports whether specs differ in nothing but the key of their digests.
func sameContent(a, b *musterv1.StackSpec) bool {
	plain := func(spec *musterv1.StackSpec) *musterv1.StackSpec {
		spec = proto.CloneOf(spec)
		spec.DigestKey = nil
		for _, s := range spec.Secrets {
			delete(s.Labels, DigestLabel)
		}
		return spec
	}
	return proto.Equal(plain(a), plain(b))
}

// recheck is how long a deployment continues without a look whether another one began.
const recheck = 200 * time.Millisecond

// check returns ErrConflict if another client has deployed or removed the stack since.
func (d *deployment) check(ctx context.Context) error {
	if time.Since(d.checked) < recheck {
		return nil
	}
	now, err := find(ctx, d.client, d.name)
	if err != nil {
		return err
	}
	if now.GetId() != d.result.Stack.Id || now.GetRemovingSince() != nil || now.Revision.GetNumber() != d.result.Stack.Revision.GetNumber() {
		return d.conflict(now)
	}
	d.checked = time.Now()
	return nil
}

func (d *deployment) conflict(now *musterv1.Stack) error { return conflictWith(d.name, now) }

// conflictWith says what another client did.
func conflictWith(name string, now *musterv1.Stack) error {
	by := func(who string) string {
		if who == "" {
			return ""
		}
		return " by " + who
	}
	switch {
	case now == nil:
		return fmt.Errorf("%w: %q was removed; deploy again", ErrConflict, name)
	case now.RemovingSince != nil:
		return fmt.Errorf("%w: %q is being removed%s; deploy again", ErrConflict, name, by(now.RemovingBy))
	}
	return fmt.Errorf("%w: revision %d of %q was deployed%s; look at it, and deploy again if it lacks something",
		ErrConflict, now.Revision.GetNumber(), name, by(now.Revision.GetBy()))
}

// apply makes the changes of a plan.
func (d *deployment) apply(ctx context.Context, plan []Change) error {
	d.result.Services = nil
	d.checked = time.Time{}
	var stopping []string
	for i, c := range plan {
		if c.Action != ActionKeep && (i == 0 || plan[i-1].Kind != c.Kind || plan[i-1].Action != c.Action) {
			d.checked = time.Time{}
		}
		if c.Action != ActionKeep {
			if err := d.check(ctx); err != nil {
				return err
			}
		}
		if c.Action == ActionRemove && c.Kind != "service" {
			if err := untilStopped(ctx, d.client, stopping); err != nil {
				return err
			}
			stopping = nil
		}
		s, err := c.apply(ctx, d.client)
		if c.ifUnused && status.Code(err) == codes.FailedPrecondition {
			continue // tasks still use it
		}
		if err != nil {
			d.checked = time.Time{}
			if conflict := d.check(ctx); errors.Is(conflict, ErrConflict) {
				return conflict
			}
			return fmt.Errorf("%s %s %q: %w", c.Action, c.Kind, c.Name, err)
		}
		if c.Action == ActionRemove && c.Kind == "service" {
			stopping = append(stopping, c.id)
		}
		if s != nil {
			d.result.Services = append(d.result.Services, s)
		}
		if c.Action != ActionKeep {
			d.result.Changes = append(d.result.Changes, c)
		}
		if d.progress != nil {
			d.progress(c)
		}
	}
	d.checked = time.Time{}
	return d.check(ctx)
}

// apply makes a change, and returns the service that it is about.
func (c *Change) apply(ctx context.Context, client Client) (*musterv1.Service, error) {
	switch c.Action {
	case ActionKeep:
		return c.current, nil
	case ActionRemove:
		return nil, c.remove(ctx, client)
	case ActionUpdate:
		return c.update(ctx, client)
	}
	var err error
	switch spec := c.spec.(type) {
	case *musterv1.NetworkSpec:
		_, err = client.CreateNetwork(ctx, &musterv1.CreateNetworkRequest{Spec: spec})
	case *musterv1.ConfigSpec:
		_, err = client.CreateConfig(ctx, &musterv1.CreateConfigRequest{Spec: spec})
	case *musterv1.SecretSpec:
		_, err = client.CreateSecret(ctx, &musterv1.CreateSecretRequest{Spec: spec})
	case *musterv1.ServiceSpec:
		var resp *musterv1.CreateServiceResponse
		resp, err = client.CreateService(ctx, &musterv1.CreateServiceRequest{Spec: spec})
		return resp.GetService(), err
	}
	return nil, err
}

func (c *Change) update(ctx context.Context, client Client) (*musterv1.Service, error) {
	var err error
	switch spec := c.spec.(type) {
	case *musterv1.ConfigSpec:
		_, err = client.UpdateConfig(ctx, &musterv1.UpdateConfigRequest{Config: c.id, Version: c.version, Spec: spec})
	case *musterv1.SecretSpec:
		_, err = client.UpdateSecret(ctx, &musterv1.UpdateSecretRequest{Secret: c.id, Version: c.version, Spec: spec})
	case *musterv1.ServiceSpec:
		var resp *musterv1.UpdateServiceResponse
		resp, err = client.UpdateService(ctx, &musterv1.UpdateServiceRequest{Service: c.id, Version: c.version, Spec: spec})
		return resp.GetService(), err
	}
	return nil, err
}

// remove removes an object. One that is gone is removed already.
func (c *Change) remove(ctx context.Context, client Client) error {
	var err error
	switch c.Kind {
	case "service":
		_, err = client.RemoveService(ctx, &musterv1.RemoveServiceRequest{Service: c.id})
	case "network":
		_, err = client.RemoveNetwork(ctx, &musterv1.RemoveNetworkRequest{Network: c.id})
	case "config":
		_, err = client.RemoveConfig(ctx, &musterv1.RemoveConfigRequest{Config: c.id})
	case "secret":
		_, err = client.RemoveSecret(ctx, &musterv1.RemoveSecretRequest{Secret: c.id})
	}
	if status.Code(err) == codes.NotFound {
		return nil
	}
	return err
}

// Clean removes what a deployment of the spec could not, because services still used it: former
// versions of configs and secrets, and with Options.Prune other objects that only former
// specs of services have used. It is called when the services have converged. What is in use
// even then stays.
func Clean(ctx context.Context, client Client, spec *musterv1.StackSpec, opt Options) error {
	p, err := prepare(ctx, client, spec, opt)
	if err != nil {
		return err
	}
	for _, c := range p.changes {
		if !c.ifUnused {
			continue
		}
		err := c.remove(ctx, client)
		if status.Code(err) == codes.FailedPrecondition {
			continue
		}
		if err != nil {
			return fmt.Errorf("remove %s %q: %w", c.Kind, c.Name, err)
		}
		if opt.Progress != nil {
			opt.Progress(c)
		}
	}
	return nil
}
