package stack_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/stack"
)

func TestDeployCreatesInOrderAndSecondChangesNothing(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, c *cluster) {
		want := []string{"create network shop_default", "create config shop_conf", "create secret shop_password", "create service shop_web", "create service shop_db"}
		wantList(t, "plan", c.plan(shop(), stack.Options{}), want)
		var told []stack.Change
		result := c.deploy(shop(), stack.Options{Message: "first", Progress: func(ch stack.Change) { told = append(told, ch) }})
		wantList(t, "progress", changes(told), want)
		wantList(t, "result", changes(result.Changes), want)
		if len(result.Services) != 2 || result.Stack.Revision.Number != 1 || result.Stack.Revision.Message != "first" {
			t.Errorf("services %v of %v", result.Services, result.Stack)
		}

		var calls []string
		again, err := stack.Deploy(t.Context(), c.client(func(method string) error {
			if writes(method) {
				calls = append(calls, method)
			}
			return nil
		}), shop(), stack.Options{Prune: true, Message: "second"})
		if err != nil {
			t.Fatal(err)
		}
		// The one call that is left stores a revision only if the content is another one.
		wantList(t, "writing calls of the second deployment", calls, []string{"UpdateStack"})
		if len(again.Changes) > 0 || len(again.Services) != 2 || !proto.Equal(again.Stack, result.Stack) {
			t.Errorf("the second deployment: %v %v", again.Changes, again.Stack)
		}
	})
}

func TestUpdateNamesChangedFields(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, c *cluster) {
		c.deploy(shop(), stack.Options{})
		next := shop()
		next.Services[1].Task.GetContainer().Image = "postgres"
		plan, err := stack.Plan(t.Context(), c.client(nil), next, stack.Options{})
		if err != nil {
			t.Fatal(err)
		}
		wantList(t, "plan", changes(plan), []string{"update service shop_db"})
		for _, ch := range plan {
			if ch.Action == stack.ActionUpdate {
				wantList(t, "fields", ch.Fields, []string{"task.container.image"})
			}
		}
		if result := c.deploy(next, stack.Options{}); result.Stack.Revision.Number != 2 {
			t.Errorf("revision %d", result.Stack.Revision.Number)
		}
		wantList(t, "plan afterwards", c.plan(next, stack.Options{}), nil)
		labels := shop()
		labels.Configs[0].Labels = map[string]string{"a": "b"}
		wantList(t, "plan of labels", c.plan(labels, stack.Options{}), []string{"update config shop_conf", "update service shop_db"})
		c.deploy(labels, stack.Options{})
		wantList(t, "plan after labels", c.plan(labels, stack.Options{}), nil)
	})
}

func TestGenericRuntimesFollowVersionsOfFiles(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, c *cluster) {
		for _, name := range []string{"a", "b"} {
			if err := c.createExternal("config", name); err != nil {
				t.Fatal(err)
			}
		}
		spec := shop()
		c.join("null")
		spec.Services[0].Task.Runtime = &musterv1.TaskSpec_Generic{Generic: &musterv1.GenericRuntime{Kind: "null"}}
		spec.Services[0].Task.Networks = nil
		spec.Services[0].Task.ResourceReferences = []*musterv1.ResourceReference{
			{Type: musterv1.ResourceReference_CONFIG, Id: "shop_conf"}, {Type: musterv1.ResourceReference_SECRET, Id: "shop_password"},
			{Type: musterv1.ResourceReference_CONFIG, Id: "a"},
		}
		c.deploy(spec, stack.Options{})
		wantList(t, "plan", c.plan(spec, stack.Options{}), nil)
		spec.Secrets[0].Data = []byte("other")
		c.deploy(spec, stack.Options{})
		wantList(t, "plan of former versions", c.plan(spec, stack.Options{}), []string{"remove secret shop_password"})
		web, err := c.GetService(t.Context(), &musterv1.GetServiceRequest{Service: "shop_web"})
		if err != nil {
			t.Fatal(err)
		}
		if r := web.Service.Spec.Task.ResourceReferences[1]; r.File.GetName() != "shop_password" {
			t.Errorf("the secret's path changed to %v", r.File)
		}
		spec.Services[0].Task.ResourceReferences[2].Id = "b"
		wantList(t, "plan of another config", c.plan(spec, stack.Options{}), []string{"update service shop_web", "remove secret shop_password"})
	})
}

func TestRestartsThatWereAskedForStay(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, c *cluster) {
		c.deploy(shop(), stack.Options{})
		db, err := c.GetService(t.Context(), &musterv1.GetServiceRequest{Service: "shop_db"})
		if err != nil {
			t.Fatal(err)
		}
		db.Service.Spec.Task.ForceUpdate++
		if _, err := c.UpdateService(t.Context(), &musterv1.UpdateServiceRequest{Service: "shop_db", Version: db.Service.Meta.Version, Spec: db.Service.Spec}); err != nil {
			t.Fatal(err)
		}
		wantList(t, "plan", c.plan(shop(), stack.Options{}), nil)
	})
}

func TestNetworkThatDiffersIsRefusedBeforeAnythingChanges(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, c *cluster) {
		c.deploy(shop(), stack.Options{})
		next := shop()
		next.Networks[0].Mtu = 1400
		_, err := stack.Deploy(t.Context(), c.client(nil), next, stack.Options{})
		if err == nil || !strings.Contains(err.Error(), `"shop_default" exists and differs in mtu`) {
			t.Errorf("error is %v", err)
		}
		if history, err := stack.History(t.Context(), c.client(nil), "shop"); err != nil || len(history) != 1 {
			t.Errorf("history %v, %v", history, err)
		}
	})
}

func TestChangedDataIsNewObjectAndOldOneGoesWhenUnused(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, c *cluster) {
		c.deploy(shop(), stack.Options{})
		c.converge()
		next := shop()
		next.Configs[0].Data, next.Secrets[0].Data = []byte("listen 81"), []byte("hunter3")
		result := c.deploy(next, stack.Options{})
		web, err := c.GetService(t.Context(), &musterv1.GetServiceRequest{Service: "shop_web"})
		if err != nil {
			t.Fatal(err)
		}
		container := web.Service.Spec.Task.GetContainer()
		config, secret := container.Configs[0].ConfigName, container.Secrets[0].SecretName
		if !strings.HasPrefix(config, "shop_conf-") || !strings.HasPrefix(secret, "shop_password-") {
			t.Errorf("web uses %s and %s", config, secret)
		}
		wantList(t, "changes", changes(result.Changes), []string{"create config " + config, "create secret " + secret, "update service shop_web"})
		if err := stack.Clean(t.Context(), c.client(nil), next, stack.Options{}); err != nil {
			t.Fatal(err)
		}
		// The update can still be rolled back.
		wantList(t, "objects during the update", c.names(), []string{"config shop_conf", "config " + config, "network shop_default", "secret shop_password", "secret " + secret, "service shop_db", "service shop_web", "stack shop"})
		c.converge()
		var removed []stack.Change
		if err := stack.Clean(t.Context(), c.client(nil), next, stack.Options{Progress: func(ch stack.Change) { removed = append(removed, ch) }}); err != nil {
			t.Fatal(err)
		}
		wantList(t, "removed", changes(removed), []string{"remove config shop_conf", "remove secret shop_password"})
		wantList(t, "plan afterwards", c.plan(next, stack.Options{Prune: true}), nil)

		// A deployment also removes what an earlier one left.
		c.deploy(shop(), stack.Options{})
		c.converge()
		c.deploy(shop(), stack.Options{})
		wantList(t, "plan at last", c.plan(shop(), stack.Options{Prune: true}), nil)
		if n := len(c.names()); n != 6 {
			t.Errorf("objects at last: %q", c.names())
		}
	})
}

func TestDigestsOfSecretsTellNothing(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, c *cluster) {
		a, b := shop(), shop()
		a.Secrets = append(a.Secrets, &musterv1.SecretSpec{Name: "shop_same", Data: a.Secrets[0].Data})
		b.Name, b.Services, b.Networks, b.Configs = "other", nil, nil, nil
		b.Secrets[0].Name = "other_password"
		c.deploy(a, stack.Options{})
		c.deploy(b, stack.Options{})
		list, err := c.ListSecrets(t.Context(), &musterv1.ListSecretsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]string{}
		for _, s := range list.Secrets {
			d := s.Spec.Labels[stack.DigestLabel]
			if d == "" || seen[d] != "" {
				t.Errorf("secret %s has the digest %q of %q", s.Spec.Name, d, seen[d])
			}
			seen[d] = s.Spec.Name
		}
	})
}

func TestPruneRemovesWhatSpecLacks(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, c *cluster) {
		c.deploy(shop(), stack.Options{})
		less := shop()
		less.Services, less.Configs, less.Secrets = less.Services[1:], nil, nil
		wantList(t, "plan without prune", c.plan(less, stack.Options{}), nil)
		want := []string{"remove service shop_web", "remove config shop_conf", "remove secret shop_password"}
		wantList(t, "plan", c.plan(less, stack.Options{Prune: true}), want)
		end := c.startTask("shop_web")
		waited := false
		_, err := stack.Deploy(t.Context(), c.client(func(method string) error {
			switch method {
			case "ListTasks":
				if waited {
					end()
				}
				waited = true
			case "RemoveConfig":
				if !waited {
					t.Error("the config was removed before the tasks of its service")
				}
			}
			return nil
		}), less, stack.Options{Prune: true})
		if err != nil {
			t.Fatal(err)
		}
		wantList(t, "objects", c.names(), []string{"network shop_default", "service shop_db", "stack shop"})
	})
}

// TestInterruptedDeploymentIsContinued lets each call that changes something fail in turn.
func TestInterruptedDeploymentIsContinued(t *testing.T) {
	t.Parallel()
	for fail := 1; ; fail++ {
		interrupted := false
		t.Run(fmt.Sprint(fail), func(t *testing.T) {
			run(t, func(t *testing.T, c *cluster) {
				calls := 0
				_, err := stack.Deploy(t.Context(), c.client(func(method string) error {
					if writes(method) {
						if calls++; calls == fail {
							return status.Error(codes.Unavailable, "interrupted")
						}
					}
					return nil
				}), shop(), stack.Options{})
				if interrupted = err != nil; interrupted && status.Code(err) != codes.Unavailable {
					t.Errorf("error is %v", err)
				}
				result := c.deploy(shop(), stack.Options{Prune: true})
				if result.Stack.Revision.Number != 1 || len(result.Services) != 2 {
					t.Errorf("%v", result.Stack)
				}
				wantList(t, "plan", c.plan(shop(), stack.Options{Prune: true}), nil)
			})
		})
		if !interrupted {
			if fail < 6 {
				t.Errorf("only %d calls change something", fail-1)
			}
			return
		}
	}
}

// TestLaterDeploymentWins begins a second deployment before each call of the first.
func TestLaterDeploymentWins(t *testing.T) {
	t.Parallel()
	later := shop()
	later.Services[0].Task.GetContainer().Image = "nginx:2"
	later.Services = later.Services[:1]
	for at := 1; ; at++ {
		ran := false
		t.Run(fmt.Sprint(at), func(t *testing.T) {
			run(t, func(t *testing.T, c *cluster) {
				calls := 0
				_, err := stack.Deploy(t.Context(), c.client(func(string) error {
					if calls++; calls == at {
						ran = true
						c.deploy(later, stack.Options{Prune: true})
					}
					return nil
				}), shop(), stack.Options{})
				if !ran {
					return
				}
				// The first one may also begin with what the second has left.
				if err != nil && !errors.Is(err, stack.ErrConflict) {
					t.Errorf("error is %v", err)
				}
				history, historyErr := stack.History(t.Context(), c.client(nil), "shop")
				if historyErr != nil {
					t.Fatal(historyErr)
				}
				current, specErr := stack.Revision(t.Context(), c.client(nil), "shop", 0)
				if specErr != nil {
					t.Fatal(specErr)
				}
				if first := len(current.Services) == 2; first != (err == nil) {
					t.Errorf("revision %d is current, and the first deployment returned %v", history[0].Number, err)
				}
				if err == nil {
					return
				}
				// Only the last calls of the first can leave something, which it cannot see.
				plan := c.plan(later, stack.Options{})
				if len(plan) > 0 {
					t.Errorf("plan of the second deployment: %q", plan)
				}
			})
		})
		if !ran {
			return
		}
	}
}

func TestEqualDeploymentsAtTheSameTimeSucceed(t *testing.T) {
	t.Parallel()
	for at := 1; ; at++ {
		ran := false
		t.Run(fmt.Sprint(at), func(t *testing.T) {
			run(t, func(t *testing.T, c *cluster) {
				calls := 0
				_, err := stack.Deploy(t.Context(), c.client(func(string) error {
					if calls++; calls == at {
						ran = true
						c.deploy(shop(), stack.Options{})
					}
					return nil
				}), shop(), stack.Options{})
				if err != nil {
					t.Error(err)
				}
				wantList(t, "plan", c.plan(shop(), stack.Options{Prune: true}), nil)
			})
		})
		if !ran {
			return
		}
	}
}

func TestRollbackBringsAnyRevisionBack(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, c *cluster) {
		for i := range 3 {
			spec := shop()
			spec.Services[0].Task.GetContainer().Image = fmt.Sprintf("nginx:%d", i+1)
			spec.Configs[0].Data = fmt.Append(nil, i)
			spec.Secrets[0].Data = fmt.Append(nil, i)
			c.deploy(spec, stack.Options{Prune: true})
			c.converge()
			if err := stack.Clean(t.Context(), c.client(nil), spec, stack.Options{}); err != nil {
				t.Fatal(err)
			}
		}
		for _, number := range []uint64{1, 3, 2} {
			result, err := stack.Rollback(t.Context(), c.client(nil), "shop", number, stack.Options{Prune: true})
			if err != nil {
				t.Fatal(err)
			}
			if want := fmt.Sprintf("rollback to revision %d", number); result.Stack.Revision.Message != want {
				t.Errorf("message %q, want %q", result.Stack.Revision.Message, want)
			}
			web, err := c.GetService(t.Context(), &musterv1.GetServiceRequest{Service: "shop_web"})
			if err != nil {
				t.Fatal(err)
			}
			container := web.Service.Spec.Task.GetContainer()
			config, err := c.GetConfig(t.Context(), &musterv1.GetConfigRequest{Config: container.Configs[0].ConfigName})
			if err != nil {
				t.Fatal(err)
			}
			if want := fmt.Sprintf("nginx:%d", number); container.Image != want || string(config.Config.Spec.Data) != fmt.Sprint(number-1) {
				t.Errorf("after the rollback to revision %d: %s with %s", number, container.Image, config.Config.Spec.Data)
			}
			c.converge()
		}
		history, err := stack.History(t.Context(), c.client(nil), "shop")
		if err != nil || len(history) != 6 {
			t.Errorf("history %v, %v", history, err)
		}
		if _, err := stack.Rollback(t.Context(), c.client(nil), "shop", 99, stack.Options{}); status.Code(err) != codes.NotFound {
			t.Errorf("revision 99: %v", err)
		}
		if _, err := stack.Rollback(t.Context(), c.client(nil), "other", 1, stack.Options{}); !errors.Is(err, stack.ErrNotFound) {
			t.Errorf("another stack: %v", err)
		}
	})
}

// TestPlanAfterDeploymentIsEmpty deploys one random spec after another.
func TestPlanAfterDeploymentIsEmpty(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		specs := rapid.SliceOfN(randomStack(), 1, 4).Draw(rt, "specs")
		prune := rapid.Bool().Draw(rt, "prune")
		run(t, func(t *testing.T, c *cluster) {
			for i, spec := range specs {
				before := proto.CloneOf(spec)
				c.deploy(spec, stack.Options{Prune: prune})
				if !proto.Equal(spec, before) {
					t.Errorf("the deployment changed the spec that it was given")
				}
				c.converge()
				if err := stack.Clean(t.Context(), c.client(nil), spec, stack.Options{Prune: prune}); err != nil {
					t.Fatal(err)
				}
				plan := c.plan(spec, stack.Options{Prune: prune})
				if !prune {
					// Services that the spec no longer has can still use former versions.
					plan = slices.DeleteFunc(plan, func(ch string) bool { return strings.HasPrefix(ch, "remove ") })
				}
				if len(plan) > 0 {
					t.Errorf("plan after deployment %d of %d: %q\n%v", i+1, len(specs), plan, spec)
				}
			}
			if err := stack.Remove(t.Context(), c.client(nil), "shop", nil); err != nil {
				t.Error(err)
			}
			wantList(t, "objects at last", c.names(), nil)
		})
		if t.Failed() {
			rt.Fatal("see above")
		}
	})
}

// randomStack returns stacks whose objects often have the same names, and names that look
// like versions of others.
func randomStack() *rapid.Generator[*musterv1.StackSpec] {
	name := rapid.SampledFrom([]string{"shop_a", "shop_b", "shop_a-1234abcd", "shop_" + strings.Repeat("x", 57)})
	data := rapid.SampledFrom([]string{"1", "2", "3"})
	return rapid.Custom(func(t *rapid.T) *musterv1.StackSpec {
		spec := &musterv1.StackSpec{Name: "shop"}
		names := func(what string) []string {
			return rapid.SliceOfNDistinct(name, 0, 3, rapid.ID[string]).Draw(t, what)
		}
		configs, secrets, networks := names("configs"), names("secrets"), names("networks")
		for _, n := range configs {
			spec.Configs = append(spec.Configs, &musterv1.ConfigSpec{Name: n, Data: []byte(data.Draw(t, "data"))})
		}
		for _, n := range secrets {
			spec.Secrets = append(spec.Secrets, &musterv1.SecretSpec{Name: n, Data: []byte(data.Draw(t, "data"))})
		}
		for _, n := range networks {
			spec.Networks = append(spec.Networks, &musterv1.NetworkSpec{Name: n})
		}
		for _, n := range names("services") {
			spec.Services = append(spec.Services, service(n, func(s *musterv1.ServiceSpec, c *musterv1.ContainerSpec) {
				c.Image = data.Draw(t, "image")
				for i, of := range configs {
					c.Configs = append(c.Configs, &musterv1.ConfigReference{ConfigName: of, Target: &musterv1.ConfigReference_File{File: &musterv1.FileTarget{Name: fmt.Sprint("c", i)}}})
				}
				for i, of := range secrets {
					c.Secrets = append(c.Secrets, &musterv1.SecretReference{SecretName: of, File: &musterv1.FileTarget{Name: fmt.Sprint("s", i)}})
				}
				for _, of := range networks {
					s.Task.Networks = append(s.Task.Networks, &musterv1.NetworkAttachmentConfig{Target: of})
				}
			}))
		}
		return spec
	})
}
