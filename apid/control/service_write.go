package control

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/distribution/reference"
	"github.com/docker/docker/pkg/namesgenerator"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/backend"
	"github.com/musterhq/muster/internal/specdiff"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
	"github.com/musterhq/muster/internal/tracing"
)

// createService writes a service, its name and its task spec in one
// transaction, and returns its id. A service without a name gets a generated one.
func (s *Server) createService(ctx context.Context, spec *musterv1.ServiceSpec, now time.Time) (string, error) {
	s.SealSpecs(ctx)
	return s.services.create(ctx, func(tx *store.Tx, id string) (*recordv1.Service, error) {
		if err := s.checkStack(tx, spec.Labels); err != nil {
			return nil, err
		}
		task, err := s.withNetworkIDs(tx, spec.Task)
		if err != nil {
			return nil, err
		}
		if task, err = s.withFileIDs(tx, task); err != nil {
			return nil, err
		}
		record := &recordv1.Service{
			Spec: withoutTask(spec), SpecVersion: 1,
			CreatedAt: now.UnixMilli(), UpdatedAt: now.UnixMilli(), Trace: tracing.Of(ctx),
		}
		digest, stored, err := s.opt.Sealer.Spec(ctx, tx, task)
		if err != nil {
			return nil, err
		}
		record.TaskDigest = digest
		if spec.Name == "" {
			record.Spec.Name = s.freeName(tx, id)
		}
		if err := s.checkCycle(tx, record.Spec); err != nil {
			return nil, err
		}
		if err := s.connect(tx, id, nil, record, task, now); err != nil {
			return nil, err
		}
		s.keepSpec(tx, record.TaskDigest, stored, now)
		return record, nil
	})
}

// freeName generates a name that no service has.
func (s *Server) freeName(tx *store.Tx, id string) string {
	const attempts = 10
	for attempt := range attempts {
		// A name is also a name in DNS, which has no underscores.
		name := strings.ReplaceAll(namesgenerator.GetRandomName(attempt), "_", "-")
		if _, taken := s.Tables.Names.Get(tx, state.NameKey(s.services.name, name)); !taken {
			return name
		}
	}
	return "service-" + id
}

// specTouch is the age from which a spec that is used again is written again.
// It is well below the time for which unused specs are kept.
const specTouch = 20 * time.Second

// keepSpec sees to it that a task spec is there, and stays although nothing
// may refer to it until this transaction is through: the sweep removes only a
// spec that has not been written for a while, and its transaction and this one
// cannot both succeed.
func (s *Server) keepSpec(tx *store.Tx, digest []byte, spec *recordv1.Spec, now time.Time) {
	key := state.SpecKey(digest)
	e, ok := s.Tables.Specs.Get(tx, key)
	if ok && now.UnixMilli()-e.Value.CreatedAt < specTouch.Milliseconds() {
		return
	}
	spec.CreatedAt = now.UnixMilli()
	s.Tables.Specs.Put(tx, key, spec)
}

// taskSpec returns a task spec with all values; nil if it is gone.
func (s *Server) taskSpec(tx *store.Tx, digest []byte) (*musterv1.TaskSpec, error) {
	e, ok := s.Tables.Specs.Get(tx, state.SpecKey(digest))
	if !ok {
		return nil, nil
	}
	spec, err := s.opt.Sealer.OpenSpec(e.Key, e.Value)
	if err != nil {
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	}
	return spec, nil
}

// storedService is a service within a transaction that changes it.
type storedService struct {
	version uint64
	record  *recordv1.Service
	// task is the current task spec, nil if it cannot be read.
	task *musterv1.TaskSpec

	// stuck says that tasks do not follow the spec, and will not do so by themselves:
	// the update to it has paused, or was rolled back.
	stuck bool
	// rolledBack says that tasks follow what was there before the spec.
	rolledBack bool
	// former is the task spec that was there before, nil if it cannot be read.
	former *musterv1.TaskSpec

	// next and nextTask are what the service should be, nextDigest the digest of a
	// task spec that is stored already.
	next       *musterv1.ServiceSpec
	nextTask   *musterv1.TaskSpec
	nextDigest []byte
	// nextSpec is what is stored of nextTask.
	nextSpec *recordv1.Spec
	// previous is what the spec was before, and scaled says that this is no update.
	previous *musterv1.ServiceSpec
	scaled   bool
	rollback bool

	cascade cascade
}

// progress notes how far the update to the service's spec has come.
func (s *storedService) progress(r *recordv1.Rollout) {
	if r.GetSpecVersion() != s.record.SpecVersion {
		return
	}
	s.rolledBack = r.GetRolledBack()
	s.stuck = state.Halted(r)
}

// replace takes a whole new spec.
func (s *storedService) replace(spec *musterv1.ServiceSpec) error {
	if have := serviceMode(s.record.GetSpec()); serviceMode(spec) != have {
		return status.Errorf(codes.Unimplemented, "spec: the mode of a service cannot be changed (it is %s); remove it and create it again", modeText(have))
	}
	s.next, s.nextTask = withoutTask(spec), keepAuth(s.task, spec.Task)
	if s.next.Name == "" {
		s.next.Name = s.record.GetSpec().GetName()
	}
	return nil
}

// rollBack goes back to the spec before the last update.
func (s *storedService) rollBack() error {
	old := s.record
	if old.GetPreviousSpec() == nil {
		return status.Errorf(codes.FailedPrecondition, "service %q has no previous spec: it was never updated", old.GetSpec().GetName())
	}
	s.next, s.nextDigest, s.rollback = withoutTask(old.PreviousSpec), old.PreviousTaskDigest, true
	return nil
}

// scale changes the number of replicas and nothing else.
func (s *storedService) scale(replicas uint64) error {
	if have := serviceMode(s.record.GetSpec()); have != musterv1.ServiceMode_REPLICATED {
		return status.Errorf(codes.FailedPrecondition, "only replicated services can be scaled; service %q is %s",
			s.record.GetSpec().GetName(), modeText(have))
	}
	mode := &musterv1.ServiceSpec_Replicated{Replicated: &musterv1.ReplicatedService{Replicas: &replicas}}
	s.next, s.scaled = withoutTask(s.record.GetSpec()), true
	s.next.Mode = mode
	// A rollback does not undo it.
	if s.record.PreviousSpec != nil {
		s.previous = withoutTask(s.record.PreviousSpec)
		s.previous.Mode = mode
	}
	return nil
}

// updateService changes a service as decide says, whose error refuses the
// change.
func (s *Server) updateService(ctx context.Context, ref string, version *uint64, decide func(*storedService) error) (*musterv1.Service, error) {
	s.SealSpecs(ctx)
	now, restarts := time.Now(), s.restarts()
	return s.services.update(ctx, ref, version, func(tx *store.Tx, id string, e store.Entry[*recordv1.Service]) (*recordv1.Service, error) {
		stored, err := s.readService(tx, id, e)
		if err != nil {
			return nil, err
		}
		stored.cascade = cascade{restarts, map[string]bool{}}
		if err := decide(stored); err != nil {
			return nil, err
		}
		return s.nextService(ctx, tx, id, stored, now)
	})
}

// readService reads what a change of a service is decided by.
func (s *Server) readService(tx *store.Tx, id string, e store.Entry[*recordv1.Service]) (*storedService, error) {
	stored := &storedService{version: e.Version, record: e.Value}
	var err error
	if stored.task, err = s.taskSpec(tx, e.Value.TaskDigest); err != nil {
		return nil, err
	}
	if stored.former, err = s.taskSpec(tx, e.Value.FormerTaskDigest); err != nil {
		return nil, err
	}
	rollout, _ := s.Tables.Rollouts.Get(tx, id)
	stored.progress(rollout.Value)
	return stored, nil
}

// nextService returns the record of a service after a change that is decided.
func (s *Server) nextService(ctx context.Context, tx *store.Tx, id string, stored *storedService, now time.Time) (*recordv1.Service, error) {
	old := stored.record
	digest, err := s.nextTask(ctx, tx, stored)
	if err != nil {
		return nil, err
	}
	sameTask := bytes.Equal(digest, old.TaskDigest)
	sameSpec := sameTask && proto.Equal(stored.next, old.Spec)
	if sameSpec && (stored.scaled || !stored.stuck) {
		return nil, backend.ErrNoChange
	}
	if err := s.checkCycle(tx, stored.next); err != nil {
		return nil, err
	}
	runsSame := sameTask && proto.Equal(stored.next.Endpoint, old.GetSpec().GetEndpoint())
	if stored.rolledBack && !stored.rollback && !runsSame {
		if err := stored.checkFailed(); err != nil {
			return nil, err
		}
	}
	if !sameTask && stored.nextTask != nil {
		s.keepSpec(tx, digest, stored.nextSpec, now)
	}
	next := proto.CloneOf(old)
	next.Spec, next.TaskDigest = stored.next, digest
	next.UpdatedAt, next.Trace = max(now.UnixMilli(), old.UpdatedAt), tracing.Of(ctx)
	switch {
	case stored.scaled:
		next.PreviousSpec = stored.previous
	case stored.rolledBack && !stored.rollback && runsSame && !sameSpec:
		// What tasks run and publish stays as it is, so this is no new attempt at
		// the spec that was rolled back.
	default:
		stored.leave(next)
		next.Attempt, next.RollsBack = old.Attempt+1, stored.rollback
	}
	if !runsSame {
		task := stored.nextTask
		if task == nil {
			spec, _ := s.Tables.Specs.Get(tx, state.SpecKey(digest))
			task = spec.Value.GetTask()
		}
		// The version that the change was made to: it grows, and says since when.
		next.SpecVersion = max(old.SpecVersion+1, stored.version)
		if !stored.rolledBack {
			next.FormerTaskDigest, next.FormerEndpoint, next.FormerSpecVersion = old.TaskDigest, old.GetSpec().GetEndpoint(), old.SpecVersion
		}
		if err := s.connect(tx, id, old, next, task, now); err != nil {
			return nil, err
		}
		if err := s.restartDependents(ctx, tx, old.GetSpec().GetName(), stored.cascade, now); err != nil {
			return nil, err
		}
	}
	return next, nil
}

// nextTask returns the digest of the task spec that a service should have. A spec that is
// not stored yet gets the ids of its networks first.
func (s *Server) nextTask(ctx context.Context, tx *store.Tx, stored *storedService) (digest []byte, err error) {
	switch {
	case stored.nextTask != nil:
		if stored.nextTask, err = s.withNetworkIDs(tx, stored.nextTask); err != nil {
			return nil, err
		}
		if stored.nextTask, err = s.withFileIDs(tx, stored.nextTask); err != nil {
			return nil, err
		}
		if proto.Equal(stored.nextTask, stored.task) {
			// It may have been stored before values were sealed.
			return stored.record.TaskDigest, nil
		}
		digest, stored.nextSpec, err = s.opt.Sealer.Spec(ctx, tx, stored.nextTask)
		return digest, err
	case stored.nextDigest != nil:
		return stored.nextDigest, nil
	default:
		return stored.record.TaskDigest, nil
	}
}

// failedUpdate is the type of the violations of an update that still has what failed.
const failedUpdate = "FAILED_UPDATE"

// checkFailed refuses an update after an automatic rollback that keeps everything
// that the failed update changed: it would roll the same fault out again, although
// the user changes something else. It also refuses the update if it cannot be known what
// failed. A greater force_update overrides it.
func (s *storedService) checkFailed() error {
	old := s.record
	if s.nextTask.GetForceUpdate() > s.task.GetForceUpdate() {
		return nil
	}
	name := old.GetSpec().GetName()
	const force = "try again with a greater task.forceUpdate (muster service update --force)"
	if s.task == nil || s.former == nil {
		return status.Errorf(codes.FailedPrecondition,
			"the last update of service %q failed and was rolled back, and it can no longer be read what it changed: make sure that this update does not repeat the fault, and "+force, name)
	}
	failed := &musterv1.ServiceSpec{Task: withoutForce(s.task), Endpoint: old.GetSpec().GetEndpoint()}
	former := &musterv1.ServiceSpec{Task: withoutForce(s.former), Endpoint: old.GetFormerEndpoint()}
	next := &musterv1.ServiceSpec{Task: withoutForce(s.nextTask), Endpoint: s.next.GetEndpoint()}
	fields := specdiff.Kept(former, failed, next)
	if len(fields) == 0 {
		return nil
	}
	waysOut := fmt.Sprintf("change that too, or first make what runs the spec (muster service rollback %s), or "+force, name)
	refusal := status.Newf(codes.FailedPrecondition,
		"the last update of service %q failed and was rolled back, and this update still has what it changed (%s); %s", name, strings.Join(fields, ", "), waysOut)
	violations := new(errdetails.PreconditionFailure)
	for _, f := range fields {
		violations.Violations = append(violations.Violations, &errdetails.PreconditionFailure_Violation{
			Type: failedUpdate, Subject: "spec." + f,
			Description: fmt.Sprintf("the last update of service %q changed this, failed and was rolled back, and this update still has it; %s", name, waysOut),
		})
	}
	if detailed, err := refusal.WithDetails(violations); err == nil {
		refusal = detailed
	}
	return refusal.Err()
}

// withoutForce returns a task spec whose force_update says nothing.
func withoutForce(t *musterv1.TaskSpec) *musterv1.TaskSpec {
	t = proto.CloneOf(t)
	t.ForceUpdate = 0
	return t
}

// leave notes what the spec was before an update: the last that tasks were to
// follow. One that was rolled back is none, and neither is one that is only given
// another attempt; a rollback by a user can be taken back.
func (s *storedService) leave(next *recordv1.Service) {
	old := s.record
	if !s.rollback && (s.rolledBack || bytes.Equal(next.TaskDigest, old.TaskDigest) && proto.Equal(next.Spec, old.Spec)) {
		return
	}
	next.PreviousSpec, next.PreviousTaskDigest, next.PreviousSpecVersion = old.Spec, old.TaskDigest, old.SpecVersion
}

// withoutTask returns a spec without its task, which is stored apart. The
// parts are shared.
func withoutTask(s *musterv1.ServiceSpec) *musterv1.ServiceSpec {
	return &musterv1.ServiceSpec{
		Name: s.GetName(), Labels: s.GetLabels(), Mode: s.GetMode(),
		Update: s.GetUpdate(), Rollback: s.GetRollback(), Endpoint: s.GetEndpoint(),
		DependsOn: s.GetDependsOn(),
	}
}

// keepAuth carries registry credentials over to a spec that comes without them: they are
// write-only, so a client that read the spec cannot send them back. A credential goes to no
// other registry than the one it was given for, and to no other container of a group.
func keepAuth(old, next *musterv1.TaskSpec) *musterv1.TaskSpec {
	former, copied := byName(old), false
	for name, c := range byName(next) {
		auth := former[name].GetPullOptions().GetRegistryAuth()
		if auth == "" || c.GetPullOptions().GetRegistryAuth() != "" || registry(former[name].GetImage()) != registry(c.GetImage()) {
			continue
		}
		if !copied {
			next, copied = proto.CloneOf(next), true
		}
		c = byName(next)[name]
		if c.PullOptions == nil {
			c.PullOptions = &musterv1.PullOptions{}
		}
		c.PullOptions.RegistryAuth = auth
	}
	return next
}

// byName returns the container specs of a task by their names in its group; the main one
// has none.
func byName(t *musterv1.TaskSpec) map[string]*musterv1.ContainerSpec {
	all := map[string]*musterv1.ContainerSpec{}
	if c := t.GetContainer(); c != nil {
		all[""] = c
	}
	for _, g := range t.GetGroup() {
		if c := g.GetContainer(); c != nil {
			all[g.GetName()] = c
		}
	}
	return all
}

func registry(image string) string {
	named, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return ""
	}
	return reference.Domain(named)
}

// serviceMode is a service's mode as filters name it.
func serviceMode(s *musterv1.ServiceSpec) musterv1.ServiceMode {
	switch s.GetMode().(type) {
	case *musterv1.ServiceSpec_Global:
		return musterv1.ServiceMode_GLOBAL
	case *musterv1.ServiceSpec_ReplicatedJob:
		return musterv1.ServiceMode_REPLICATED_JOB
	case *musterv1.ServiceSpec_GlobalJob:
		return musterv1.ServiceMode_GLOBAL_JOB
	}
	return musterv1.ServiceMode_REPLICATED
}

// modeText names a mode for people.
func modeText(m musterv1.ServiceMode) string {
	switch m {
	case musterv1.ServiceMode_GLOBAL:
		return "global"
	case musterv1.ServiceMode_REPLICATED_JOB:
		return "a replicated job"
	case musterv1.ServiceMode_GLOBAL_JOB:
		return "a global job"
	default:
		return "replicated"
	}
}
