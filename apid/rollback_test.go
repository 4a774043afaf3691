package apid_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/state"
	"github.com/musterhq/muster/internal/store"
)

// image updates a service to an image.
func (a *api) image(t *testing.T, name, image string) *musterv1.Service {
	t.Helper()
	s := a.get(name)
	next := proto.CloneOf(s.Spec)
	next.Task.GetContainer().Image = image
	up, err := a.UpdateService(t.Context(), &musterv1.UpdateServiceRequest{Service: name, Version: s.Meta.Version, Spec: next})
	if err != nil {
		t.Fatal(err)
	}
	return up.Service
}

func imageOf(s *musterv1.ServiceSpec) string { return s.GetTask().GetContainer().GetImage() }

func TestRollbackSwapsSpecs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		a := c.apid()
		a.create(webSpec("web"))
		_, err := a.RollbackService(t.Context(), &musterv1.RollbackServiceRequest{Service: "web"})
		wantCode(t, err, codes.FailedPrecondition)
		_, err = a.RollbackService(t.Context(), &musterv1.RollbackServiceRequest{Service: "nope"})
		wantCode(t, err, codes.NotFound)
		first := imageOf(a.get("web").Spec)
		updated := a.image(t, "web", "nginx:2")
		if _, err := a.ScaleService(t.Context(), &musterv1.ScaleServiceRequest{Service: "web", Replicas: 7}); err != nil {
			t.Fatal(err)
		}
		_, err = a.RollbackService(t.Context(), &musterv1.RollbackServiceRequest{Service: "web", Version: updated.Meta.Version})
		wantCode(t, err, codes.Aborted)
		for i, want := range []string{first, "nginx:2", first} {
			back, err := a.RollbackService(t.Context(), &musterv1.RollbackServiceRequest{Service: "web"})
			if err != nil {
				t.Fatal(err)
			}
			s := back.Service
			if imageOf(s.Spec) != want || imageOf(s.PreviousSpec) == want || s.SpecVersion <= updated.SpecVersion {
				t.Errorf("rollback %d: %v", i, s)
			}
			if s.Spec.GetReplicated().GetReplicas() != 7 {
				t.Errorf("rollback %d undid the scaling: %v", i, s.Spec.Mode)
			}
			updated = s
		}
	})
}

// TestUpdateStatusIsOfThisUpdate looks at the status of an update that has paused,
// and of the attempts after it.
func TestUpdateStatusIsOfThisUpdate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		a := c.apid()
		s := a.create(webSpec("web"))
		first := imageOf(s.Spec)
		s = a.image(t, "web", "nginx:2")
		rollout := func(change func(*recordv1.Rollout)) {
			c.update(func(tx *store.Tx) {
				e, _ := c.tables.Services.Get(tx, s.Id)
				r := &recordv1.Rollout{
					State: musterv1.UpdateStatus_PAUSED, Message: "alas", SpecVersion: e.Value.SpecVersion, Attempt: e.Value.Attempt,
				}
				change(r)
				c.tables.Rollouts.Put(tx, s.Id, r)
			})
		}
		rollout(func(*recordv1.Rollout) {})
		s = awaitStatus(t, a, musterv1.UpdateStatus_PAUSED)
		// No change at all is another attempt, of which nothing is known yet.
		again, err := a.UpdateService(t.Context(), &musterv1.UpdateServiceRequest{Service: "web", Version: s.Meta.Version, Spec: s.Spec})
		if err != nil || again.Service.Meta.Version <= s.Meta.Version || again.Service.UpdateStatus != nil || imageOf(again.Service.PreviousSpec) != first {
			t.Fatalf("another attempt: %v, %v", again, err)
		}
		rollout(func(r *recordv1.Rollout) { r.State, r.RolledBack = musterv1.UpdateStatus_ROLLBACK_COMPLETED, true })
		awaitStatus(t, a, musterv1.UpdateStatus_ROLLBACK_COMPLETED)
		// What comes after a spec that was rolled back goes back to what the tasks followed.
		third := a.image(t, "web", "nginx:3")
		if imageOf(third.PreviousSpec) != first || third.UpdateStatus != nil {
			t.Errorf("after a rollback: %v", third)
		}
	})
}

func awaitStatus(t *testing.T, a *api, want musterv1.UpdateStatus_State) (s *musterv1.Service) {
	t.Helper()
	settled(t, "update status "+want.String(), func() bool {
		s = a.get("web")
		return s.UpdateStatus.GetState() == want
	})
	return s
}

// rollBackByItself has an update to image nginx:2 fail and be rolled back, as the
// orchestrator does.
func rollBackByItself(t *testing.T, c *cluster, a *api) *musterv1.Service {
	t.Helper()
	a.create(webSpec("web"))
	s := a.image(t, "web", "nginx:2")
	settled(t, "the test's store has the service", func() bool {
		e, ok := c.tables.Services.Get(c.store.Snapshot(), s.Id)
		return ok && e.Version >= s.Meta.Version
	})
	c.update(func(tx *store.Tx) {
		e, _ := c.tables.Services.Get(tx, s.Id)
		c.tables.Rollouts.Put(tx, s.Id, &recordv1.Rollout{
			State: musterv1.UpdateStatus_ROLLBACK_COMPLETED, RolledBack: true, Message: "alas",
			SpecVersion: e.Value.SpecVersion, Attempt: e.Value.Attempt,
		})
	})
	return awaitStatus(t, a, musterv1.UpdateStatus_ROLLBACK_COMPLETED)
}

func TestServiceShowsWhatRunsAfterAnAutomaticRollback(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		a := c.apid()
		s := rollBackByItself(t, c, a)
		if imageOf(s.Spec) != "nginx:2" || imageOf(s.EffectiveSpec) != imageOf(s.PreviousSpec) || imageOf(s.EffectiveSpec) == "nginx:2" {
			t.Errorf("spec has image %q, effective spec %q, previous spec %q", imageOf(s.Spec), imageOf(s.EffectiveSpec), imageOf(s.PreviousSpec))
		}
		back, err := a.RollbackService(t.Context(), &musterv1.RollbackServiceRequest{Service: "web"})
		if err != nil {
			t.Fatal(err)
		}
		if back.Service.EffectiveSpec != nil {
			t.Errorf("after the user's rollback the effective spec is %v, want none", back.Service.EffectiveSpec)
		}
	})
}

// After an automatic rollback an update of something else must not roll the failed
// spec out again.
func TestUpdateAfterAnAutomaticRollback(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*musterv1.ServiceSpec)
		code   codes.Code
		// follows is the image that tasks follow then.
		follows string
	}{
		"the environment only": {
			change: func(s *musterv1.ServiceSpec) {
				s.Task.GetContainer().Env = append(s.Task.GetContainer().Env, "OTHER=1")
			},
			code: codes.FailedPrecondition, follows: "former",
		},
		"a published port only": {
			change: func(s *musterv1.ServiceSpec) {
				s.Endpoint = &musterv1.EndpointSpec{Ports: []*musterv1.PortConfig{{TargetPort: 80, PublishedPort: 8080, PublishMode: musterv1.PortConfig_HOST}}}
			},
			code: codes.FailedPrecondition, follows: "former",
		},
		"labels only": {change: func(s *musterv1.ServiceSpec) { s.Labels = map[string]string{"a": "b"} }, follows: "former"},
		"replicas only": {change: func(s *musterv1.ServiceSpec) {
			s.Mode = &musterv1.ServiceSpec_Replicated{Replicated: &musterv1.ReplicatedService{Replicas: proto.Uint64(9)}}
		}, follows: "former"},
		"another image": {change: func(s *musterv1.ServiceSpec) { s.Task.GetContainer().Image = "nginx:3" }, follows: "nginx:3"},
		"nothing":       {change: func(*musterv1.ServiceSpec) {}, follows: "nginx:2"},
		"a greater force": {change: func(s *musterv1.ServiceSpec) {
			s.Task.GetContainer().Env = append(s.Task.GetContainer().Env, "OTHER=1")
			s.Task.ForceUpdate++
		}, follows: "nginx:2"},
	} {
		subtest(t, name, func(t *testing.T) {
			cl := newCluster(t)
			a := cl.apid()
			s := rollBackByItself(t, cl, a)
			former := imageOf(s.EffectiveSpec)
			next := proto.CloneOf(s.Spec)
			c.change(next)
			up, err := a.UpdateService(t.Context(), &musterv1.UpdateServiceRequest{Service: "web", Version: s.Meta.Version, Spec: next})
			wantCode(t, err, c.code)
			if err != nil {
				for _, want := range []string{"task.container.image", "service rollback web", "--force"} {
					if !strings.Contains(err.Error(), want) {
						t.Errorf("the error does not name %q: %v", want, err)
					}
				}
				if got := a.get("web"); got.Meta.Version != s.Meta.Version {
					t.Errorf("a refused update changed the service to version %d", got.Meta.Version)
				}
				return
			}
			want := c.follows
			if want == "former" {
				want = former
			}
			got := up.Service.EffectiveSpec
			if got == nil {
				got = up.Service.Spec
			}
			if imageOf(got) != want {
				t.Errorf("tasks follow image %q, want %q", imageOf(got), want)
			}
		})
	}
}

// TestRESTRefusesToRepeatAFailedUpdate: REST answers with the fields that failed.
func TestRESTRefusesToRepeatAFailedUpdate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		a := c.apid()
		s := rollBackByItself(t, c, a)
		next := proto.CloneOf(s.Spec)
		next.Task.GetContainer().Env = append(next.Task.GetContainer().Env, "OTHER=1")
		put := func() answer {
			t.Helper()
			body, err := protojson.Marshal(next)
			if err != nil {
				t.Fatal(err)
			}
			return a.rest("PUT", fmt.Sprintf("/v1/services/web?version=%d", s.Meta.Version), string(body))
		}
		got := put()
		if got.code != http.StatusBadRequest {
			t.Fatalf("the update is answered with %d %s", got.code, got.body)
		}
		for _, want := range []string{"task.container.image", "service rollback web", `"type":"FAILED_UPDATE"`, `"subject":"spec.task.container.image"`} {
			if !strings.Contains(strings.ReplaceAll(got.body, ": ", ":"), want) {
				t.Errorf("the answer does not name %q: %s", want, got.body)
			}
		}
		next.Task.ForceUpdate++
		if got := put(); got.code != http.StatusOK {
			t.Errorf("with a greater force the answer is %d %s", got.code, got.body)
		}
	})
}

// TestUpdateIsRefusedWhenWhatFailedIsUnknown removes a spec that the check needs.
func TestUpdateIsRefusedWhenWhatFailedIsUnknown(t *testing.T) {
	t.Parallel()
	for name, digest := range map[string]func(*recordv1.Service) []byte{
		"the former spec": (*recordv1.Service).GetFormerTaskDigest,
		"the failed spec": (*recordv1.Service).GetTaskDigest,
	} {
		subtest(t, name, func(t *testing.T) {
			c := newCluster(t)
			a := c.apid()
			s := rollBackByItself(t, c, a)
			next := proto.CloneOf(s.Spec)
			next.Task.GetContainer().Env = append(next.Task.GetContainer().Env, "OTHER=1")
			c.update(func(tx *store.Tx) {
				e, _ := c.tables.Services.Get(tx, s.Id)
				c.tables.Specs.Delete(tx, state.SpecKey(digest(e.Value)))
			})
			update := func() error {
				_, err := a.UpdateService(t.Context(), &musterv1.UpdateServiceRequest{Service: "web", Version: s.Meta.Version, Spec: next})
				return err
			}
			err := update()
			wantCode(t, err, codes.FailedPrecondition)
			if err != nil && !strings.Contains(err.Error(), "--force") {
				t.Errorf("the error does not name --force: %v", err)
			}
			next.Task.ForceUpdate++
			wantCode(t, update(), codes.OK)
		})
	}
}
