package control

import (
	"context"
	"errors"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/backend"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
	"github.com/musterhq/muster/internal/taskspec"
)

// restartUsers replaces the tasks of services that ask for it when a secret or config gets
// other data, in the transaction that writes the data. A service whose last update was
// rolled back is left alone: its spec is the one that failed.
func (s *Server) restartUsers(ctx context.Context, tx *store.Tx, secret bool, id string) error {
	var users []store.Entry[*recordv1.Service]
	for e := range s.Tables.Services.Scan(tx, "") {
		spec, _ := s.Tables.Specs.Get(tx, state.SpecKey(e.Value.TaskDigest))
		if restartsOn(spec.Value.GetTask(), secret, id) {
			users = append(users, e)
		}
	}
	now := time.Now()
	for _, e := range users {
		stored, err := s.readService(tx, e.Key, e)
		if err != nil {
			return err
		}
		if stored.rolledBack {
			continue
		}
		if stored.task == nil {
			return status.Errorf(codes.FailedPrecondition, "the task spec of service %q, which restarts with it, cannot be read", e.Value.GetSpec().GetName())
		}
		stored.next, stored.nextTask = withoutTask(e.Value.GetSpec()), proto.CloneOf(stored.task)
		stored.nextTask.ForceUpdate++
		next, err := s.nextService(ctx, tx, e.Key, stored, now)
		if errors.Is(err, backend.ErrNoChange) {
			continue
		}
		if err != nil {
			return err
		}
		s.Tables.Services.Put(tx, e.Key, next)
	}
	return nil
}

// restartsOn reports whether tasks must be replaced when a secret or config changes.
func restartsOn(task *musterv1.TaskSpec, secret bool, id string) bool {
	return slices.ContainsFunc(taskspec.AllFiles(task), func(f taskspec.File) bool { return f.Secret == secret && f.ID == id && f.Restart })
}
