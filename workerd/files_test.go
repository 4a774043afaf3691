package workerd_test

import (
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	. "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/workerd"
)

// runtimeDir returns a directory on a tmpfs.
func runtimeDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "muster-worker-test")
	if err != nil {
		t.Skipf("there is no tmpfs to write to: %v", err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// withFiles returns a task that refers to a secret and a config.
func withFiles(id, secret, config string) assignment {
	a := nullTask(id, running, nil)
	a.SpecDigest = []byte(id)
	a.spec.ResourceReferences = []*ResourceReference{
		{Type: ResourceReference_SECRET, Id: secret, File: &FileTarget{Name: "password"}},
		{Type: ResourceReference_CONFIG, Id: config, File: &FileTarget{Name: "config"}},
	}
	a.Dependencies = []*dispatcherv1.ObjectRef{
		{Ref: &dispatcherv1.ObjectRef_Secret{Secret: secret}}, {Ref: &dispatcherv1.ObjectRef_Config{Config: config}},
	}
	return a
}

// TestErrorsOfTemplatesHoldNoSecrets has mistakes in templates. Errors of tasks are stored in
// the clear, and every viewer sees them.
func TestErrorsOfTemplatesHoldNoSecrets(t *testing.T) {
	t.Parallel()
	const canary = "p4ss*w0rd"
	for name, c := range map[string]struct{ secret, config, want string }{
		"no mistake":             {canary, `{{secret "password"}}`, ""},
		"a wrong name":           {canary, `{{secret "passwort"}}`, `template in config c1: the task has no secret "passwort"`},
		"data as a name":         {canary, `{{config (secret "password")}}`, "template in config c1: the task has no config with a name that it uses"},
		"data as a format":       {canary, `{{printf (secret "password")}}`, "template in config c1 cannot be expanded"},
		"a mistake":              {canary, `{{.Task.Nothing}}`, "can't evaluate field Nothing"},
		"a secret template":      {`{{secret "` + canary + `"}}`, "", "template in secret s1: the task has no secret with a name that it uses"},
		"a wrong secret":         {`{{.` + "p4ss" + `}}`, "", "template in secret s1 cannot be expanded"},
		"a variable as a config": {canary, `{{config (env "A")}}`, `template in config c1: the task has no variable "A"`},
	} {
		t.Run(name, func(t *testing.T) {
			dir := runtimeDir(t)
			synctest.Test(t, func(t *testing.T) {
				d, _, _ := alone(t, func(cfg *workerd.Config) { cfg.RuntimeDir = dir })
				s := d.await(t)
				s.welcome()
				task := withFiles("a", "s1", "c1")
				templating := ""
				if strings.Contains(c.secret, "{{") {
					templating = "golang"
				}
				s.send(&dispatcherv1.SessionResponse{Message: &dispatcherv1.SessionResponse_Assignments{Assignments: &dispatcherv1.Assignments{
					Complete: true, Last: true, Objects: []*dispatcherv1.AssignedObject{
						{Object: &dispatcherv1.AssignedObject_Spec{Spec: s.newSpec(task)}},
						{Object: &dispatcherv1.AssignedObject_Secret{Secret: &dispatcherv1.AssignedSecret{Id: "s1", Data: []byte(c.secret), Templating: templating}}},
						{Object: &dispatcherv1.AssignedObject_Config{Config: &dispatcherv1.AssignedConfig{Id: "c1", Data: []byte(c.config), Templating: "golang"}}},
						{Object: &dispatcherv1.AssignedObject_Task{Task: task.AssignedTask}},
					},
				}}})
				settle(time.Second)
				got := s.state("a")
				if text := got.GetError() + got.GetMessage(); strings.Contains(text, "p4ss") || !strings.Contains(text, c.want) {
					t.Errorf("task is %s: %s, want %q", got.GetState(), text, c.want)
				}
				if (c.want == "") != (got.GetState() == running) {
					t.Errorf("task is %s: %s", got.GetState(), got.GetError())
				}
			})
		})
	}
}
