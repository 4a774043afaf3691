package control

import (
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
	"github.com/musterhq/muster/internal/taskspec"
)

// maxUsers bounds how many services an error names.
const maxUsers = 10

// usage reports whether tasks of a service use an object, if they are made of a task
// spec and publish the ports of an endpoint spec.
type usage func(service *recordv1.Service, task *musterv1.TaskSpec, endpoint *musterv1.EndpointSpec) bool

// refersTo is the usage of objects that task specs refer to.
func refersTo(of musterv1.ResourceReference_Type, id string) usage {
	return func(_ *recordv1.Service, task *musterv1.TaskSpec, _ *musterv1.EndpointSpec) bool {
		return slices.Contains(references(task, of), id)
	}
}

// unused refuses to remove an object that services use. It reads all services in
// the transaction that removes the object. A transaction that makes a service use
// an object must read that object's record, so that the two cannot both succeed.
func (s *Server) unused(tx *store.Tx, kind, name string, uses usage) error {
	var users []string
	for e := range s.Tables.Services.Scan(tx, "") {
		if s.inUse(tx, e, uses) {
			users = append(users, e.Value.GetSpec().GetName())
		}
	}
	if len(users) == 0 {
		return nil
	}
	slices.Sort(users)
	named := strings.Join(users[:min(len(users), maxUsers)], ", ")
	if len(users) > maxUsers {
		named += ", ..."
	}
	return status.Errorf(codes.FailedPrecondition, "%s %q is used by services (%s): update or remove them first", kind, name, named)
}

// inUse reports whether a service uses an object, or may use it again: an update that
// has not completed can be rolled back.
func (s *Server) inUse(tx *store.Tx, e store.Entry[*recordv1.Service], uses usage) bool {
	service := e.Value
	spec := func(digest []byte) *musterv1.TaskSpec {
		spec, _ := s.Tables.Specs.Get(tx, state.SpecKey(digest))
		return spec.Value.GetTask()
	}
	if uses(service, spec(service.TaskDigest), service.GetSpec().GetEndpoint()) {
		return true
	}
	return s.mayReturn(tx, e) && uses(service, spec(service.FormerTaskDigest), service.FormerEndpoint)
}

// mayReturn reports whether tasks of a service are still made of its former spec, or may
// be again.
func (s *Server) mayReturn(tx *store.Tx, e store.Entry[*recordv1.Service]) bool {
	if len(e.Value.FormerTaskDigest) == 0 {
		return false
	}
	rollout, ok := s.Tables.Rollouts.Get(tx, e.Key)
	done := ok && state.IsCurrent(e.Value, rollout.Value) && rollout.Value.State == musterv1.UpdateStatus_COMPLETED && !rollout.Value.RolledBack
	return !done
}

// references returns the ids of the objects of a type that a task spec refers to.
func references(t *musterv1.TaskSpec, of musterv1.ResourceReference_Type) []string {
	var ids []string
	for _, r := range t.GetResourceReferences() {
		if r.Type == of {
			ids = append(ids, r.Id)
		}
	}
	for _, c := range taskspec.Containers(t) {
		switch of {
		case musterv1.ResourceReference_CONFIG:
			for _, r := range c.GetConfigs() {
				ids = append(ids, r.ConfigId)
			}
			if id := c.GetPrivileges().GetCredentialSpec().GetConfig(); id != "" {
				ids = append(ids, id)
			}
		case musterv1.ResourceReference_SECRET:
			for _, r := range c.GetSecrets() {
				ids = append(ids, r.SecretId)
			}
		}
	}
	return ids
}
