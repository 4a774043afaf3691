package simulation

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/daemon"
)

// callTimeout bounds one call. One that has no answer by then may or may not have
// been applied.
const callTimeout = 15 * time.Second

func clone[T proto.Message](m T) T { return proto.CloneOf(m) }

// user calls the API, one call after the other, and remembers what was accepted. No
// other user touches its services.
type user struct {
	c      *cluster
	number int
	host   *host
	// conns are connections to each apid, by name.
	conns map[string]*grpc.ClientConn
	steps chan Step

	mu       sync.Mutex
	services map[string]*service
	configs  map[string]*service
	networks map[string]*service
	// doing is true while a step is done.
	doing bool
}

// busy says whether there is still something to do.
func (u *user) busy() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.doing || len(u.steps) > 0
}

func (u *user) set(doing bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.doing = doing
}

// service is what a user knows of one, or of a config: what each of its parts may be.
// There are several possibilities after calls that had no answer.
type service struct {
	there    []bool
	replicas []uint64
	revision []string
	// startFirst is true if it was ever asked for that the new task starts first.
	startFirst bool
	// calling is how many calls are under way.
	calling int
}

func newUser(c *cluster, number int) (*user, error) {
	u := &user{c: c, number: number, host: c.net.join(fmt.Sprint("user-", number)), conns: map[string]*grpc.ClientConn{}, steps: make(chan Step, 100_000), services: map[string]*service{}, configs: map[string]*service{}, networks: map[string]*service{}}
	for i := range c.script.Size.Managers {
		name := replica("apid", i+1)
		conn, err := daemon.Dialer(daemon.Plain().Client, grpc.WithContextDialer(u.host.dial))(addressOf(name))
		if err != nil {
			return nil, err
		}
		u.conns[name] = conn
	}
	return u, nil
}

// run does steps until there are none any more.
func (u *user) run() {
	for s := range u.steps {
		u.set(true)
		u.do(s)
		u.set(false)
	}
	for _, conn := range u.conns {
		_ = conn.Close() // nothing is under way
	}
}

// do makes one call, or two of the same.
func (u *user) do(s Step) {
	if s.Twin == "" {
		u.make(s)
		return
	}
	twin := s
	twin.API, s.Twin, twin.Twin = s.Twin, "", ""
	var both sync.WaitGroup
	both.Go(func() { u.make(twin) })
	u.make(s)
	both.Wait()
}

func (u *user) make(s Step) {
	api := musterv1.NewControlServiceClient(u.conns[s.API])
	switch s.Op {
	case create:
		u.call(s, api, u.create)
	case update:
		u.call(s, api, u.update)
	case scale:
		u.call(s, api, u.scale)
	case remove:
		u.call(s, api, u.remove)
	case rollBack:
		u.call(s, api, u.rollBack)
	case updateNode:
		u.call(s, api, u.updateNode)
	case createConfig:
		u.call(s, api, u.createConfig)
	case updateConfig:
		u.call(s, api, u.updateConfig)
	case removeConfig:
		u.call(s, api, u.removeConfig)
	case createNetwork:
		u.call(s, api, u.createNetwork)
	case removeNetwork:
		u.call(s, api, u.removeNetwork)
	}
}

// errNotMade says that a call was not even made, or refused as it should be.
var errNotMade = errors.New("not applied")

// call makes a call and says what became of it.
func (u *user) call(s Step, api musterv1.ControlServiceClient, do func(context.Context, musterv1.ControlServiceClient, Step, *service) (settle func(accepted bool), err error)) {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	u.mu.Lock()
	objects := u.services
	switch s.Op {
	case createConfig, updateConfig, removeConfig:
		objects = u.configs
	case createNetwork, removeNetwork:
		objects = u.networks
	}
	v := objects[s.Who]
	if v == nil {
		v = &service{there: []bool{false}, replicas: []uint64{0}, revision: []string{""}}
		if s.Op != updateNode {
			objects[s.Who] = v
		}
	}
	v.calling++
	v.startFirst = v.startFirst || startFirst(s.Spec)
	u.mu.Unlock()
	u.c.journal.note("user-%d at %s: %v", u.number, s.API, s)
	settle, err := do(ctx, api, s, v)
	u.mu.Lock()
	defer u.mu.Unlock()
	v.calling--
	code := status.Code(err)
	switch {
	case err == nil:
		u.c.report.count(string(s.Op)+": accepted", 1)
		u.c.journal.note("user-%d: %s %s is accepted", u.number, s.Op, s.Who)
		settle(true)
	case errors.Is(err, errNotMade):
		u.c.report.count(string(s.Op)+": not made", 1)
		u.c.journal.note("user-%d: %s %s is not made: %v", u.number, s.Op, s.Who, err)
	case errors.Is(err, context.DeadlineExceeded), code == codes.DeadlineExceeded, code == codes.Unavailable, code == codes.Canceled:
		u.c.report.count(string(s.Op)+": no answer", 1)
		u.c.journal.note("user-%d: %s %s has no answer: %v", u.number, s.Op, s.Who, err)
		settle(false)
	case slices.Contains([]codes.Code{codes.NotFound, codes.AlreadyExists, codes.FailedPrecondition, codes.Aborted}, code),
		code == codes.InvalidArgument && len(s.Spec.GetTask().GetNetworks()) > 0:
		// What there is may be another than the user believes, or a replica may not
		// know of it yet.
		u.c.report.count(string(s.Op)+": refused", 1)
		u.c.journal.note("user-%d: %s %s is refused: %v", u.number, s.Op, s.Who, err)
	default:
		u.c.violated("user-%d: %s %s: %v", u.number, s.Op, s.Who, err)
	}
}

func (u *user) create(ctx context.Context, api musterv1.ControlServiceClient, s Step, v *service) (func(bool), error) {
	_, err := api.CreateService(ctx, &musterv1.CreateServiceRequest{Spec: s.Spec})
	return func(accepted bool) {
		note(&v.there, accepted, true)
		note(&v.replicas, accepted, s.Spec.GetReplicated().GetReplicas())
		note(&v.revision, accepted, s.Spec.Labels[revisionLabel])
	}, err
}

func (u *user) update(ctx context.Context, api musterv1.ControlServiceClient, s Step, v *service) (func(bool), error) {
	got, err := api.GetService(ctx, &musterv1.GetServiceRequest{Service: s.Who})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNotMade, err)
	}
	spec := clone(s.Spec)
	defer u.c.observer.calling(s.Who, spec.Update)()
	_, err = api.UpdateService(ctx, &musterv1.UpdateServiceRequest{Service: s.Who, Version: got.Service.Meta.Version, Spec: spec})
	return func(accepted bool) {
		note(&v.replicas, accepted, spec.GetReplicated().GetReplicas())
		note(&v.revision, accepted, spec.Labels[revisionLabel])
	}, err
}

func (u *user) scale(ctx context.Context, api musterv1.ControlServiceClient, s Step, v *service) (func(bool), error) {
	_, err := api.ScaleService(ctx, &musterv1.ScaleServiceRequest{Service: s.Who, Replicas: uint64(s.N)})
	return func(accepted bool) { note(&v.replicas, accepted, uint64(s.N)) }, err
}

// rollBack goes back to what the user sees to have been before.
func (u *user) rollBack(ctx context.Context, api musterv1.ControlServiceClient, s Step, v *service) (func(bool), error) {
	got, err := api.GetService(ctx, &musterv1.GetServiceRequest{Service: s.Who})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNotMade, err)
	}
	before := got.Service.PreviousSpec
	defer u.c.observer.calling(s.Who, got.Service.Spec.GetRollback())()
	_, err = api.RollbackService(ctx, &musterv1.RollbackServiceRequest{Service: s.Who, Version: got.Service.Meta.Version})
	return func(accepted bool) {
		note(&v.replicas, accepted, before.GetReplicated().GetReplicas())
		note(&v.revision, accepted, before.GetLabels()[revisionLabel])
	}, err
}

func (u *user) remove(ctx context.Context, api musterv1.ControlServiceClient, s Step, v *service) (func(bool), error) {
	_, err := api.RemoveService(ctx, &musterv1.RemoveServiceRequest{Service: s.Who})
	return func(accepted bool) { note(&v.there, accepted, false) }, err
}

func (u *user) updateNode(ctx context.Context, api musterv1.ControlServiceClient, s Step, _ *service) (func(bool), error) {
	got, err := api.GetNode(ctx, &musterv1.GetNodeRequest{Node: s.Who})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNotMade, err)
	}
	_, err = api.UpdateNode(ctx, &musterv1.UpdateNodeRequest{Node: s.Who, Version: got.Node.Meta.GetVersion(), Spec: s.Node})
	return func(bool) {}, err
}

// note notes what a part of a service is after a call, or may be.
func note[T comparable](possible *[]T, accepted bool, value T) {
	if accepted && len(*possible) > 1 && slices.Contains(*possible, value) {
		// It may have been so already, and nothing was written: then a call without
		// an answer that is still under way can be applied after it.
		return
	}
	if accepted {
		*possible = []T{value}
	} else if !slices.Contains(*possible, value) {
		*possible = append(*possible, value)
	}
}

// check says where the services that there are differ from what was accepted.
func (u *user) check(there map[string]*recordv1.Service) (faults []string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	fault := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
	for name, r := range there {
		if !strings.HasPrefix(name, fmt.Sprintf("s%d-", u.number)) {
			continue
		}
		v := u.services[name]
		if v == nil {
			fault("service %s is there, and no user created it", name)
			continue
		}
		if v.calling > 0 {
			continue
		}
		if !slices.Contains(v.there, true) {
			fault("service %s is there: its removal was accepted, or it was never made", name)
		}
		if n := r.Spec.GetReplicated().GetReplicas(); !slices.Contains(v.replicas, n) {
			fault("service %s has %d replicas, accepted were %v", name, n, v.replicas)
		}
		if rev := r.Spec.Labels[revisionLabel]; !slices.Contains(v.revision, rev) {
			fault("service %s has revision %s, accepted were %v", name, rev, v.revision)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(u.services)) {
		if v := u.services[name]; there[name] == nil && v.calling == 0 && !slices.Contains(v.there, false) {
			fault("service %s was accepted, and is not there", name)
		}
	}
	return faults
}

// startsFirst says whether it was ever asked for of a service that its new task starts
// before the old one stops.
func (u *user) startsFirst(name string) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	v := u.services[name]
	return v != nil && v.startFirst
}
