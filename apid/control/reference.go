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
)

// maxUsers bounds how many services an error names.
const maxUsers = 10

// unused refuses to remove an object that services refer to. It reads all services in
// the transaction that removes the object. A transaction that makes a service refer to
// an object must read that object's record, so that the two cannot both succeed.
func (s *Server) unused(tx *store.Tx, kind, name string, of musterv1.ResourceReference_Type, id string) error {
	var users []string
	for e := range s.Tables.Services.Scan(tx, "") {
		if s.refers(tx, e, of, id) {
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

// refers reports whether tasks of a service are made of a spec that refers to an object,
// or may be: an update that has not completed can be rolled back.
func (s *Server) refers(tx *store.Tx, e store.Entry[*recordv1.Service], of musterv1.ResourceReference_Type, id string) bool {
	digests := [][]byte{e.Value.TaskDigest}
	rollout, ok := s.Tables.Rollouts.Get(tx, e.Key)
	if done := ok && state.IsCurrent(e.Value, rollout.Value) && rollout.Value.State == musterv1.UpdateStatus_COMPLETED && !rollout.Value.RolledBack; !done {
		digests = append(digests, e.Value.FormerTaskDigest)
	}
	for _, digest := range digests {
		spec, ok := s.Tables.Specs.Get(tx, state.SpecKey(digest))
		if ok && slices.Contains(references(spec.Value.Task, of), id) {
			return true
		}
	}
	return false
}

// references returns the ids of the objects of a type that a task spec refers to.
func references(t *musterv1.TaskSpec, of musterv1.ResourceReference_Type) []string {
	var ids []string
	for _, r := range t.GetResourceReferences() {
		if r.Type == of {
			ids = append(ids, r.Id)
		}
	}
	c := t.GetContainer()
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
	return ids
}
