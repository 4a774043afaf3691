package cli

import (
	"slices"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// applyReferences changes the secrets or configs of tasks that are no containers as the flags
// of a list say. Tasks refer to them by name in task.resourceReferences.
func applyReferences(task *musterv1.TaskSpec, list string, added, removed []string) error {
	kind := referenceTypes()[list]
	task.ResourceReferences = slices.DeleteFunc(task.ResourceReferences, func(r *musterv1.ResourceReference) bool {
		return r.Type == kind && slices.Contains(removed, r.Id)
	})
	for _, text := range added {
		r := &musterv1.ResourceReference{Type: kind}
		if kind == musterv1.ResourceReference_SECRET {
			secret, err := parseSecret(text)
			if err != nil {
				return err
			}
			r.Id, r.File, r.OnChange = secret.SecretName, secret.File, secret.OnChange
		} else {
			config, err := parseConfig(text)
			if err != nil {
				return err
			}
			r.Id, r.File, r.OnChange = config.ConfigName, config.GetFile(), config.OnChange
		}
		task.ResourceReferences = append(task.ResourceReferences, r)
	}
	return nil
}

// referenceTypes returns the types of references by the lists of flags that change them.
func referenceTypes() map[string]musterv1.ResourceReference_Type {
	return map[string]musterv1.ResourceReference_Type{"secret": musterv1.ResourceReference_SECRET, "config": musterv1.ResourceReference_CONFIG}
}

// nameReferences has the references of a task name the secrets and configs that flags remove
// as the flags do. The API stores their ids.
func (c *CLI) nameReferences(cmd *cobra.Command, task *musterv1.TaskSpec) error {
	if task.GetGeneric() == nil {
		return nil
	}
	for list, kind := range referenceTypes() {
		for _, name := range listOf(cmd, list+"-rm") {
			id, err := c.fileID(cmd, kind, name)
			if status.Code(err) == codes.NotFound {
				continue
			}
			if err != nil {
				return err
			}
			for _, r := range task.ResourceReferences {
				if r.Type == kind && r.Id == id {
					r.Id = name
				}
			}
		}
	}
	return nil
}

func (c *CLI) fileID(cmd *cobra.Command, kind musterv1.ResourceReference_Type, name string) (string, error) {
	if kind == musterv1.ResourceReference_SECRET {
		got, err := call(c, cmd, api.GetSecret, &musterv1.GetSecretRequest{Secret: name})
		return got.GetSecret().GetId(), err
	}
	got, err := call(c, cmd, api.GetConfig, &musterv1.GetConfigRequest{Config: name})
	return got.GetConfig().GetId(), err
}
