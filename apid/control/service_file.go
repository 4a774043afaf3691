package control

import (
	"cmp"
	"slices"

	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/validate"
	"github.com/musterhq/muster/internal/store"
	"github.com/musterhq/muster/internal/taskspec"
)

// withFileIDs returns a task spec whose secrets and configs are named by their ids and names.
// It reads their records, so that none can be removed in the same moment.
func (s *Server) withFileIDs(tx *store.Tx, task *musterv1.TaskSpec) (*musterv1.TaskSpec, error) {
	if !taskspec.HasFiles(task) {
		return task, nil
	}
	var r validate.Report
	task = proto.CloneOf(task)
	resolve := func(field string, secret bool, id, name *string) {
		noun := s.configs.name
		if secret {
			noun = s.secrets.name
		}
		foundID, foundName, ok := s.findFile(tx, secret, cmp.Or(*id, *name))
		if !ok {
			r.Waiting(field, "there is no %s %q; create it first (muster %s create)", noun, cmp.Or(*id, *name), noun)
			return
		}
		*id, *name = foundID, foundName
	}
	for i, ref := range task.ResourceReferences {
		var name string
		if slices.Contains([]musterv1.ResourceReference_Type{musterv1.ResourceReference_SECRET, musterv1.ResourceReference_CONFIG}, ref.Type) {
			resolve(validate.Indexed("spec.task.resourceReferences", i)+".id", ref.Type == musterv1.ResourceReference_SECRET, &ref.Id, &name)
		}
		if name != "" && ref.File.GetName() == "" {
			// The worker must know the path without the record.
			if ref.File == nil {
				ref.File = &musterv1.FileTarget{}
			}
			ref.File.Name = name
		}
	}
	resolveAll := func(field string, c *musterv1.ContainerSpec) {
		for i, ref := range c.GetSecrets() {
			resolve(validate.Indexed(field+".secrets", i), true, &ref.SecretId, &ref.SecretName)
		}
		for i, ref := range c.GetConfigs() {
			resolve(validate.Indexed(field+".configs", i), false, &ref.ConfigId, &ref.ConfigName)
		}
	}
	resolveAll("spec.task.container", task.GetContainer())
	for i, g := range task.Group {
		resolveAll(validate.Indexed("spec.task.group", i)+".container", g.GetContainer())
	}
	return task, r.Err()
}

// findFile resolves an id or a name of a secret or config.
func (s *Server) findFile(tx *store.Tx, secret bool, ref string) (id, name string, ok bool) {
	if secret {
		return s.secrets.findRecord(tx, ref)
	}
	return s.configs.findRecord(tx, ref)
}
