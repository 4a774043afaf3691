package stack_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/stack"
)

func TestRemoveTakesDependentsFirstAndWaitsForTasks(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, c *cluster) {
		c.deploy(shop(), stack.Options{})
		other := shop()
		other.Name, other.Services, other.Networks, other.Configs, other.Secrets = "other", []*musterv1.ServiceSpec{service("other_web", nil)}, nil, nil, nil
		c.deploy(other, stack.Options{})
		end := c.startTask("shop_db")
		asked := 0
		var removed []stack.Change
		err := stack.Remove(t.Context(), c.client(func(method string) error {
			if method == "ListTasks" {
				if asked++; asked == 5 {
					end()
				}
			}
			if asked < 5 && slices.Contains([]string{"RemoveNetwork", "RemoveConfig", "RemoveSecret"}, method) {
				t.Errorf("%s before the tasks have stopped", method)
			}
			return nil
		}), "shop", func(ch stack.Change) { removed = append(removed, ch) })
		if err != nil {
			t.Fatal(err)
		}
		wantList(t, "removed", changes(removed), []string{
			"remove service shop_web", "remove service shop_db", "remove config shop_conf", "remove secret shop_password", "remove network shop_default",
		})
		wantList(t, "objects", c.names(), []string{"service other_web", "stack other"})
		if err := stack.Remove(t.Context(), c.client(nil), "shop", nil); !errors.Is(err, stack.ErrNotFound) {
			t.Errorf("a second removal: %v", err)
		}
	})
}

func TestRemoveTakesStackOfOtherTools(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, c *cluster) {
		spec := service("shop_web", func(s *musterv1.ServiceSpec, _ *musterv1.ContainerSpec) {
			s.Labels = map[string]string{stack.Label: "shop"}
		})
		if _, err := c.CreateService(t.Context(), &musterv1.CreateServiceRequest{Spec: spec}); err != nil {
			t.Fatal(err)
		}
		list, err := stack.List(t.Context(), c.client(nil))
		if err != nil || len(list) != 1 || list[0].Name != "shop" || list[0].Stack != nil || len(list[0].Services) != 1 {
			t.Errorf("list: %v, %v", list, err)
		}
		if err := stack.Remove(t.Context(), c.client(nil), "shop", nil); err != nil {
			t.Fatal(err)
		}
		wantList(t, "objects", c.names(), nil)
	})
}

// TestDeploymentDuringRemovalBeginsAfterIt begins a deployment before each call of a
// removal.
func TestDeploymentDuringRemovalBeginsAfterIt(t *testing.T) {
	t.Parallel()
	for at := 1; ; at++ {
		ran := false
		t.Run(fmt.Sprint(at), func(t *testing.T) {
			run(t, func(t *testing.T, c *cluster) {
				c.deploy(shop(), stack.Options{})
				calls := 0
				err := stack.Remove(t.Context(), c.client(func(string) error {
					if calls++; calls == at {
						ran = true
						c.deploy(shop(), stack.Options{})
					}
					return nil
				}), "shop", nil)
				if err != nil {
					t.Fatal(err)
				}
				if !ran {
					return
				}
				// What was there before the removal began is gone. What came after it is whole.
				if names := c.names(); len(names) > 0 {
					wantList(t, "plan", c.plan(shop(), stack.Options{Prune: true}), nil)
				}
			})
		})
		if !ran {
			return
		}
	}
}

// TestRemovalEndsDeployment removes the stack before each call of a deployment.
func TestRemovalEndsDeployment(t *testing.T) {
	t.Parallel()
	for at := 1; ; at++ {
		ran := false
		t.Run(fmt.Sprint(at), func(t *testing.T) {
			run(t, func(t *testing.T, c *cluster) {
				calls := 0
				_, err := stack.Deploy(t.Context(), c.client(func(string) error {
					if calls++; calls == at {
						ran = true
						if err := stack.Remove(t.Context(), c.client(nil), "shop", nil); err != nil && !errors.Is(err, stack.ErrNotFound) {
							t.Error(err)
						}
					}
					return nil
				}), shop(), stack.Options{})
				switch {
				case err == nil:
					wantList(t, "plan", c.plan(shop(), stack.Options{Prune: true}), nil)
				case !errors.Is(err, stack.ErrConflict):
					t.Errorf("error is %v", err)
				}
			})
		})
		if !ran {
			return
		}
	}
}

func TestInterruptedRemovalIsContinued(t *testing.T) {
	t.Parallel()
	interrupt := errors.New("interrupted")
	for fail := 1; ; fail++ {
		interrupted := false
		t.Run(fmt.Sprint(fail), func(t *testing.T) {
			run(t, func(t *testing.T, c *cluster) {
				c.deploy(shop(), stack.Options{})
				calls := 0
				err := stack.Remove(t.Context(), c.client(func(method string) error {
					if writes(method) {
						if calls++; calls == fail {
							return interrupt
						}
					}
					return nil
				}), "shop", nil)
				if interrupted = err != nil; !interrupted {
					return
				}
				// Both continue it: another removal, and a deployment.
				if fail%2 == 0 {
					c.deploy(shop(), stack.Options{})
					wantList(t, "plan", c.plan(shop(), stack.Options{Prune: true}), nil)
					return
				}
				if err := stack.Remove(t.Context(), c.client(nil), "shop", nil); err != nil {
					t.Error(err)
				}
				wantList(t, "objects", c.names(), nil)
			})
		})
		if !interrupted {
			return
		}
	}
}
